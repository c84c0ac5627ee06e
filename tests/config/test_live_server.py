"""The live web server that tests talk to over real sockets."""

import pytest

from tests.live import Server

pytestmark = pytest.mark.django_db(transaction=True)


def test_it_answers_and_comes_back_on_its_port(server: Server) -> None:
    before, port = server.pid, server.port
    assert server.answers()
    server.restart()
    assert server.answers()
    assert (server.pid != before, server.port) == (True, port)
