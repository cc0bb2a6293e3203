"""PostgreSQL for the load client: libpq without waiting. Needs psycopg, so the peers' environment."""

from psycopg import pq

STATEMENT = b"search"
TEXT, BINARY = 0, 1


class PostgresConnection:
    """Executes one prepared statement; an answer is the first column of its rows, joined by commas."""

    def __init__(self, conninfo: str, setup: tuple[str, ...], statement: str) -> None:
        self._connection = pq.PGconn.connect(conninfo.encode())
        if self._connection.status != pq.ConnStatus.OK:
            raise RuntimeError(self._connection.error_message.decode())
        for command in setup:
            self._check(self._connection.exec_(command.encode()))
        self._check(self._connection.prepare(STATEMENT, statement.encode()))
        self._connection.nonblocking = 1

    def fileno(self) -> int:
        descriptor: int = self._connection.socket
        return descriptor

    def send(self, request: bytes) -> None:
        self._connection.send_query_prepared(STATEMENT, [request], [BINARY], result_format=TEXT)
        while self._connection.flush():
            pass

    def receive(self) -> bytes | None:
        self._connection.consume_input()
        answer = b""
        while not self._connection.is_busy():
            result = self._connection.get_result()
            if result is None:
                return answer
            self._check(result)
            answer = b",".join(result.get_value(row, 0) or b"" for row in range(result.ntuples))
        return None

    def close(self) -> None:
        self._connection.finish()

    @staticmethod
    def _check(result: pq.PGresult) -> None:
        if result.status not in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
            raise RuntimeError(result.error_message.decode())
