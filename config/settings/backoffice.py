"""Settings of the back office, a separate Django site, and of Celery and all commands, which need all apps."""

from csp.constants import NONE, SELF, UNSAFE_EVAL, UNSAFE_INLINE

from config.settings import base
from config.settings.base import *  # noqa: F403 - the common settings

INSTALLED_APPS = [
    "backoffice.apps.BackOfficeConfig",  # before the admin, to override its templates and site
    "unfold.apps.BasicAppConfig",
    "backoffice.apps.AdminConfig",
    "axes",
    "django_otp",
    "django_otp.plugins.otp_totp",
    "django_otp.plugins.otp_static",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    *base.INSTALLED_APPS,
]

MIDDLEWARE = [
    "exchange.http.middleware.RequestLogMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "backoffice.middleware.never_cache",
    "backoffice.middleware.live_connection",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django_otp.middleware.OTPMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "csp.middleware.CSPMiddleware",
    "axes.middleware.AxesMiddleware",
]

ROOT_URLCONF = "backoffice.urls"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

# Navigation, styles and scripts are in `backoffice.site`.
UNFOLD = {
    "SITE_TITLE": "Bourse",
    "SITE_HEADER": "Bourse",
    "SITE_SUBHEADER": "Back office",
    "SITE_SYMBOL": "candlestick_chart",
    "SITE_FAVICONS": [{"rel": "icon", "type": "image/svg+xml", "href": "backoffice.site.favicon"}],
    "SITE_URL": None,
    "SHOW_HISTORY": False,
    "SHOW_VIEW_ON_SITE": False,
    "SIDEBAR": {"navigation": "backoffice.site.navigation"},
    "STYLES": ["backoffice.site.stylesheet"],
    "SCRIPTS": ["backoffice.site.script"],
    "ACCOUNT": {"navigation": "backoffice.site.account_links"},
    "COMMAND": {"search_callback": "backoffice.search.search_results"},
}
CACHES = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}  # or unfold would keep search results

# --- Logins and sessions --------------------------------------------------------------------------------------------

AUTHENTICATION_BACKENDS = [
    "axes.backends.AxesStandaloneBackend",  # first, to enforce lockouts
    "django.contrib.auth.backends.ModelBackend",
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
]

SESSION_ENGINE = "backoffice.sessions"
SESSION_EXPIRE_AT_BROWSER_CLOSE = True
CSRF_COOKIE_HTTPONLY = True
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = base.SECURE_COOKIES
CSRF_FAILURE_VIEW = "backoffice.error_pages.csrf_failure"

AXES_HANDLER = "backoffice.login_attempts.LoginLimitHandler"
AXES_FAILURE_LIMIT = base.LOGIN_FAILURES
AXES_COOLOFF_TIME = base.LOGIN_LOCKOUT
AXES_RESET_COOL_OFF_ON_FAILURE_DURING_LOCKOUT = False  # a lockout ends when the page says so
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_RESET_ON_SUCCESS = True
AXES_USERNAME_CALLABLE = "backoffice.login_attempts.attempted_username"
AXES_CLIENT_IP_CALLABLE = "backoffice.login_attempts.client_address"
AXES_LOCKOUT_CALLABLE = "backoffice.login_attempts.lockout_response"
AXES_DISABLE_ACCESS_LOG = True  # its table would grow without limit and repeat the log
AXES_ENABLE_ADMIN = False
AXES_VERBOSE = False
AXES_SENSITIVE_PARAMETERS: list[str] = []  # besides the password: the log names the user and the address

LOGIN_REDIRECT_URL = "admin:index"  # after a login that no page redirected to
OTP_TOTP_ISSUER = "Bourse"

# --- Pages ----------------------------------------------------------------------------------------------------------

CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [SELF],
        "script-src": [SELF, UNSAFE_EVAL],  # Alpine, used by unfold's menus, compiles attributes to functions
        "style-src": [SELF, UNSAFE_INLINE],  # unfold's colours, and the styles that its scripts set
        "img-src": [SELF, "data:"],
        "font-src": [SELF],
        "connect-src": [SELF],
        "object-src": [NONE],
        "base-uri": [NONE],
        "form-action": [SELF],
        "frame-ancestors": [NONE],
    }
}
