"""ClickHouse's HTTP interface around the engine embedded in `chdb`, for tests.

    chdb_front.py ADDRESS:PORT DATA_DIRECTORY      (FRONT_USER and FRONT_PASSWORD are set)

It translates the protocol and nothing else: tables, tokens, deduplication, settings and error
codes are the engine's. What it does not support it refuses. Every request has an engine session
of its own, so settings cannot leak. A body reaches the engine only after it arrived whole.
"""

import base64
import hmac
import json
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import urllib.parse
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import lz4.block
import lz4.frame
from chdb.state.sqlitelike import connect
from clickhouse_cityhash.cityhash import CityHash128

VERSION = "26.9.2.1"
# Above the largest block of a test, and small enough for many servers on one machine.
BODY_BYTES_MAX = 512 << 20
# Parameters of the HTTP interface itself; every other one is a setting. The answer is always
# complete before its first byte is sent, so `wait_end_of_query` and `buffer_size` hold as they are.
OWN_PARAMETERS = {
    "query", "query_id", "database", "default_format", "compress", "decompress", "user", "password",
    "quota_key", "wait_end_of_query", "buffer_size", "stacktrace", "client_protocol_version",
}
REFUSED_PARAMETERS = {"session_id", "session_timeout", "session_check", "role"}
# The setting that carries a request's `query_id` inside the engine, which chooses its own.
# It only matters to RabbitMQ and NATS tables.
QUERY_ID_SETTING = "stream_like_engine_insert_queue"

# ClickHouse: src/Server/HTTP/exceptionCodeToHTTPStatus.cpp.
STATUS_OF_CODE = {
    194: 401, 192: 403, 193: 403, 516: 403, 48: 501, 381: 411, 209: 503, 76: 503, 159: 408,
    **dict.fromkeys([6, 25, 26, 27, 38, 41, 53, 62, 67, 68, 72, 117, 167, 168, 223], 400),
    **dict.fromkeys([46, 47, 50, 56, 60, 63, 73, 78, 81, 115, 336], 404),
}
NAME_OF_CODE = {
    40: "CHECKSUM_DOESNT_MATCH", 48: "NOT_IMPLEMENTED", 89: "UNKNOWN_COMPRESSION_METHOD",
    62: "SYNTAX_ERROR", 271: "CANNOT_DECOMPRESS", 381: "HTTP_LENGTH_REQUIRED",
    516: "AUTHENTICATION_FAILED", 1002: "UNKNOWN_EXCEPTION", 131: "TOO_LARGE_STRING_SIZE",
}
INSERT_WITH_FORMAT = re.compile(
    r"(?is)\A(\s*insert\s+into\s.*?\S)(\s+settings\s.*?)?(\s+format\s+\w+)\s*;?\s*\Z")
# `clickhouse-connect` sends the statement in front of the data.
NATIVE_IN_BODY = re.compile(rb"(?i)\A(insert\s+into\s[^\n]*\sformat\s+native)\n")
ENGINE_ERROR = re.compile(r"Code: (\d+)\. DB::Exception: ")


class Failure(Exception):
    """An error answer with ClickHouse's code."""

    def __init__(self, code, text):
        super().__init__(text)
        self.code = code


class Broken(Exception):
    """The request did not arrive whole: there is nobody to answer."""


def engine_failure(error):
    """The engine's error with its code; its text stays as it is."""
    text = str(error)
    found = ENGINE_ERROR.search(text)
    if not found:
        return Failure(1002, text)
    return Failure(int(found.group(1)), text[found.end():])


def decode_frames(body):
    """Undoes `decompress=1`: blocks of checksum, method, sizes and data."""
    out, at, total = [], 0, 0
    while at < len(body):
        head = body[at + 16:at + 25]
        if len(head) < 9:
            raise Failure(33, "Cannot read all data: compressed block header is cut")
        packed, plain = int.from_bytes(head[1:5], "little"), int.from_bytes(head[5:9], "little")
        block = body[at + 16:at + 16 + packed]
        if packed < 9 or len(block) != packed:
            raise Failure(33, "Cannot read all data: compressed block is cut")
        total += plain
        if total > BODY_BYTES_MAX:
            raise Failure(131, f"Request body is above {BODY_BYTES_MAX} bytes decompressed")
        if checksum(block) != body[at:at + 16]:
            raise Failure(40, "Checksum doesn't match: corrupted data")
        out.append(unpack(block[0], block[9:], plain))
        at += 16 + packed
    return b"".join(out)


def unpack(method, data, plain):
    if method == 0x02:
        return data
    if method != 0x82:
        raise Failure(89, f"Unknown codec family code: {method} (the front knows LZ4 and NONE)")
    try:
        return lz4.block.decompress(data, uncompressed_size=plain)
    except lz4.block.LZ4BlockError as error:
        raise Failure(271, f"Cannot decompress: {error}") from error


def encode_frames(body):
    """Does `compress=1`: LZ4 blocks of at most 1 MiB."""
    out = []
    for at in range(0, len(body), 1 << 20):
        plain = body[at:at + (1 << 20)]
        packed = lz4.block.compress(plain, store_size=False)
        sizes = (len(packed) + 9).to_bytes(4, "little") + len(plain).to_bytes(4, "little")
        block = b"\x82" + sizes + packed
        out.append(checksum(block) + block)
    return b"".join(out)


def checksum(block):
    value = CityHash128(block)
    low, high = value & (2**64 - 1), value >> 64
    return high.to_bytes(8, "little") + low.to_bytes(8, "little")


def quote(value):
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def with_client_query_ids(sql):
    """Lets `system.processes` and `KILL QUERY` find queries by the id their client gave."""
    if not re.search(r"(?is)\A\s*kill\s+query\b|\bsystem\s*\.\s*`?processes\b", sql):
        return sql
    pieces = re.split(r"('(?:[^'\\]|\\.|'')*')", sql)
    for at in range(0, len(pieces), 2):
        pieces[at] = re.sub(
            r"\b(?:initial_)?query_id\b", f"Settings['{QUERY_ID_SETTING}']", pieces[at])
    return "".join(pieces)


def multipart_fields(content_type, body):
    """The text fields of a form, which is how a client sends a query with parameters."""
    found = re.search(r'boundary="?([^";]+)', content_type)
    if not found:
        raise Failure(48, "multipart request without a boundary")
    fields = {}
    for part in body.split(b"--" + found.group(1).encode())[1:-1]:
        head, _, value = part.partition(b"\r\n\r\n")
        name = re.search(rb'name="([^"]*)"', head)
        if not name or b"filename=" in head:
            raise Failure(48, "external tables are not supported by the front")
        fields[name.group(1).decode()] = value.removesuffix(b"\r\n").decode()
    return fields


class Request:
    """One statement with its session."""

    def __init__(self, url_parameters, body, content_type, read_only):
        self.parameters = dict(url_parameters)
        if content_type.startswith("multipart/form-data"):
            self.parameters.update(multipart_fields(content_type, body))
            body = b""
        refused = REFUSED_PARAMETERS & self.parameters.keys()
        if refused:
            raise Failure(48, f"{', '.join(sorted(refused))} is not supported by the front")
        if self.parameters.get("decompress", "0") not in ("0", "false"):
            body = decode_frames(body)
        self.body = body
        self.read_only = read_only
        self.query_id = self.parameters.get("query_id") or str(uuid.uuid4())
        self.values = {
            name.removeprefix("param_"): value
            for name, value in self.parameters.items() if name.startswith("param_")}
        self.format = self.parameters.get("default_format") or "TabSeparated"

    def settings(self):
        own = {QUERY_ID_SETTING: self.query_id}
        for name, value in self.parameters.items():
            if name not in OWN_PARAMETERS and not name.startswith("param_"):
                own[name] = value
        if self.read_only:
            # As the server does for GET; last, because it forbids itself.
            own.pop("readonly", None)
            own["readonly"] = "2"
        return own

    def run(self, data, bodies):
        """Gives the answer's bytes and the summary."""
        self.bodies = bodies
        session = connect(data)
        try:
            if self.parameters.get("database"):
                session.query("use `" + self.parameters["database"].replace("`", "\\`") + "`")
            pairs = [f"{name} = {quote(value)}" for name, value in self.settings().items()]
            for name in self.settings():
                if not re.fullmatch(r"\w+", name):
                    raise Failure(115, f"Unknown setting '{name}'. (UNKNOWN_SETTING)")
            session.query("set " + ", ".join(pairs))
            return self.execute(session)
        except Failure:
            raise
        except Exception as error:
            raise engine_failure(error) from error
        finally:
            session.close()

    def execute(self, session):
        query = self.parameters.get("query", "")
        before_data = None if query else NATIVE_IN_BODY.match(self.body)
        if before_data:
            query, self.body = before_data[1].decode(), self.body[before_data.end():]
        insert = INSERT_WITH_FORMAT.match(query)
        if insert and self.body:
            return self.insert(session, *insert.groups(default=""))
        try:
            text = self.body.decode()
        except UnicodeDecodeError as error:
            raise Failure(
                48, "binary data needs its INSERT … FORMAT statement in the URL's `query` here",
            ) from error
        sql = "\n".join(part for part in (query, text) if part)
        if not sql.strip():
            raise Failure(62, "Syntax error: Empty query")
        return self.answer_of(session.query(
            with_client_query_ids(sql), self.format, params=self.values))

    def insert(self, session, statement, settings, data_format):
        """Lets the engine read the body from a file.

        `Connection.send_insert` takes bytes, but its `finish` reports success when the write
        fails after parsing: constraint, partition limit, view, timeout or KILL QUERY.
        """
        with tempfile.NamedTemporaryFile(dir=self.bodies) as file:
            file.write(self.body)
            file.flush()
            source = f" from infile {quote(file.name)} compression 'none'"
            return self.answer_of(
                session.query(statement + source + settings + data_format, self.format))

    @staticmethod
    def answer_of(result):
        summary = {
            "read_rows": result.rows_read(), "read_bytes": result.bytes_read(),
            "written_rows": result.rows_written(), "written_bytes": result.bytes_written(),
            "result_bytes": result.size(), "elapsed_ns": int(result.elapsed() * 1e9)}
        return bytes(result.bytes() or b""), summary


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Between two requests of a connection, and between two pieces of a body.
    timeout = 30
    wbufsize = -1

    def do_GET(self):
        self.answer(read_only=True)

    def do_POST(self):
        self.answer(read_only=False)

    def answer(self, read_only):
        url = urllib.parse.urlsplit(self.path)
        parameters = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        try:
            body = self.whole_body()
            if url.path == "/ping":
                return self.reply(200, b"Ok.\n", {})
            if url.path not in ("", "/"):
                return self.reply(404, f"There is no handle {url.path}\n".encode(), {})
            self.statement(parameters, body, read_only)
        except (Broken, ConnectionError, TimeoutError) as error:
            self.close_connection = True
            self.log_message("connection lost, nothing executed: %s", error)

    def statement(self, parameters, body, read_only):
        query_id = parameters.get("query_id", "")
        try:
            self.authenticate(parameters)
            request = Request(parameters, body, self.headers.get("Content-Type", ""), read_only)
            query_id = request.query_id
            with self.server.running(query_id):
                data, summary = request.run(self.server.data, self.server.bodies)
        except Failure as failure:
            return self.fail(failure, query_id)
        headers = {
            "Content-Type": "text/tab-separated-values; charset=UTF-8"
            if request.format == "TabSeparated" else "application/octet-stream",
            "X-ClickHouse-Format": request.format,
            "X-ClickHouse-Timezone": "UTC",
            "X-ClickHouse-Query-Id": query_id,
            "X-ClickHouse-Summary": json.dumps({k: str(v) for k, v in summary.items()}),
        }
        if parameters.get("compress", "0") not in ("0", "false"):
            data = encode_frames(data)
        elif data and self.wants_lz4(parameters):
            data, headers["Content-Encoding"] = lz4.frame.compress(data), "lz4"
        self.reply(200, data, headers)

    def wants_lz4(self, parameters):
        accepted = [e.split(";")[0].strip() for e in
                    self.headers.get("Accept-Encoding", "").split(",")]
        return "lz4" in accepted and parameters.get("enable_http_compression", "1") == "1"

    def fail(self, failure, query_id):
        text = str(failure)
        name = NAME_OF_CODE.get(failure.code)
        if name and f"({name})" not in text:
            text += f". ({name})"
        if "(version " not in text:
            text += f" (version {VERSION})"
        self.log_message("code %d: %s", failure.code, text)
        headers = {
            "Content-Type": "text/plain; charset=UTF-8",
            "X-ClickHouse-Exception-Code": str(failure.code),
            "X-ClickHouse-Query-Id": query_id,
        }
        body = f"Code: {failure.code}. DB::Exception: {text}\n".encode()
        self.reply(STATUS_OF_CODE.get(failure.code, 500), body, headers)

    def reply(self, status, body, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value.replace("\r", " ").replace("\n", " "))
        self.send_header("X-ClickHouse-Server-Display-Name", "pillarbox-testkit")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def authenticate(self, parameters):
        user, password = self.headers.get("X-ClickHouse-User"), self.headers.get("X-ClickHouse-Key")
        basic = self.headers.get("Authorization", "")
        if user is None and password is None and basic.startswith("Basic "):
            user, _, password = base64.b64decode(basic[6:]).decode("utf-8", "replace").partition(":")
        user = user or parameters.get("user") or "default"
        password = password or parameters.get("password") or ""
        expected = os.environ["FRONT_USER"], os.environ["FRONT_PASSWORD"]
        given = f"{user}\0{password}".encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, "\0".join(expected).encode()):
            raise Failure(516, f"{user}: Authentication failed: password is incorrect, "
                               "or there is no user with such name")

    def whole_body(self):
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            return self.chunks()
        length = int(self.headers.get("Content-Length") or 0)
        return self.exactly(length)

    def chunks(self):
        pieces, total = [], 0
        while True:
            line = self.rfile.readline(1024)
            if not line.endswith(b"\n"):
                raise Broken("chunked body was cut")
            size = int(line.split(b";")[0], 16)
            total += size
            if total > BODY_BYTES_MAX:
                raise Broken(f"body above {BODY_BYTES_MAX} bytes")
            pieces.append(self.exactly(size))
            if self.rfile.readline(1024) not in (b"\r\n", b"\n"):
                raise Broken("chunk without its end")
            if size == 0:
                return b"".join(pieces)

    def exactly(self, length):
        if length > BODY_BYTES_MAX:
            raise Broken(f"body above {BODY_BYTES_MAX} bytes")
        data = self.rfile.read(length) if length else b""
        if len(data) != length:
            raise Broken(f"body was cut at {len(data)} of {length} bytes")
        return data

    def log_request(self, *_):
        pass


class Running:
    """Refuses a second query under an id that is running, as the server does."""

    def __init__(self):
        self.lock, self.ids = threading.Lock(), set()

    def __call__(self, query_id):
        return self.Entry(self, query_id)

    class Entry:
        def __init__(self, running, query_id):
            self.running, self.query_id = running, query_id

        def __enter__(self):
            with self.running.lock:
                if self.query_id in self.running.ids:
                    raise Failure(216, f"Query with id = {self.query_id} is already running. "
                                       "(QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING)")
                self.running.ids.add(self.query_id)

        def __exit__(self, *_):
            with self.running.lock:
                self.running.ids.discard(self.query_id)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def get_request(self):
        connection, address = super().get_request()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection, address


def main():
    address, data = sys.argv[1:]
    # Held open: the engine ends with its last session.
    keeper = connect(data)
    host, _, port = address.rpartition(":")
    server = Server((host, int(port)), Handler)
    server.data, server.bodies, server.running = data, data + ".bodies", Running()
    os.makedirs(server.bodies, exist_ok=True)
    # The engine may have taken the signal for itself.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(f"ready on {address}", flush=True)
    try:
        server.serve_forever(poll_interval=0.05)
    finally:
        server.server_close()
        keeper.close()
        os._exit(0)


if __name__ == "__main__":
    main()
