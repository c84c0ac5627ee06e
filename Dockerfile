# One image for all processes: the locked packages and our own code, run by an account that cannot write.
# All packages are wheels, so there is nothing to compile and no build stage.

FROM python:3.11-slim

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

RUN useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin bourse

WORKDIR /app

COPY requirements.txt ./
RUN pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore \
    --only-binary=:all: --require-hashes -r requirements.txt

COPY manage.py ./
COPY config config
COPY backoffice backoffice
COPY exchange exchange
COPY gateway gateway
COPY orders orders
COPY webhooks webhooks
COPY docs docs
# Compiled once, and readable by the account regardless of the modes in the checkout.
RUN python -m compileall -q . && chmod -R a+rX .

USER 10001
