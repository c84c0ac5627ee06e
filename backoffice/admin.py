"""Imports the modules that register the model admins. Django looks for this module in every app."""

from backoffice import audit as audit
from backoffice import brokers as brokers
from backoffice import deliveries as deliveries
from backoffice import events as events
from backoffice import instruments as instruments
from backoffice import keys as keys
from backoffice import orders as orders
from backoffice import reconciliation as reconciliation
from backoffice import subscriptions as subscriptions
from backoffice import trades as trades
from backoffice import transfers as transfers
from backoffice import users as users
