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
INSERT_WITH_FORMAT = re.compile(r"(?is)\A(\s*insert\s+into\s.*\S)\s+format\s+(\w+)\s*;?\s*\Z")
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
    out, at = [], 0
    while at < len(body):
        head = body[at + 16:at + 25]
        if len(head) < 9:
            raise Failure(33, "Cannot read all data: compressed block header is cut")
        packed, plain = int.from_bytes(head[1:5], "little"), int.from_bytes(head[5:9], "little")
        block = body[at + 16:at + 16 + packed]
        if packed < 9 or len(block) != packed:
            raise Failure(33, "Cannot read all data: compressed block is cut")
        if sum(map(len, out)) + plain > BODY_BYTES_MAX:
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
