"""What a periodic task of Celery does, without Celery: reads a queue table in batches, sends each by
JSONEachRow, deletes it, commits. Its sessions stay open, which most tasks do not have.

Arguments: URL of PostgreSQL, queue table, URL of ClickHouse, table, rows of a batch.
"""

import http.client
import json
import sys
from base64 import b64encode
from urllib.parse import quote, urlsplit

import psycopg

COLUMNS = ("event_type", "event_date_time", "environment", "event_context", "metadata_version")


def line(row: tuple) -> str:
    event = dict(zip(COLUMNS, row[1:]))
    event["event_date_time"] = f"{event['event_date_time']:%Y-%m-%d %H:%M:%S}"
    return json.dumps(event)


def main(postgres: str, queue: str, clickhouse: str, table: str, rows: int) -> None:
    # A dictionary from the json column would come out with other bytes.
    select = (
        "select id, event_type, event_date_time, environment, event_context::text, metadata_version"
        f" from {queue} order by id limit {rows}"
    )
    url = urlsplit(clickhouse)
    login = b64encode(f"{url.username}:{url.password}".encode()).decode()
    path = "/?query=" + quote(f"insert into {table} format JSONEachRow")
    http_session = http.client.HTTPConnection(url.hostname, url.port)
    with psycopg.connect(postgres) as session:
        while batch := session.execute(select).fetchall():
            body = "\n".join(map(line, batch)).encode()
            http_session.request("POST", path, body, {"Authorization": f"Basic {login}"})
            answer = http_session.getresponse()
            text = answer.read()
            if answer.status != 200:
                sys.exit(f"http {answer.status}: {text.decode(errors='replace')}")
            session.execute(f"delete from {queue} where id = any(%s)", [[row[0] for row in batch]])
            session.commit()


main(*sys.argv[1:5], int(sys.argv[5]))
