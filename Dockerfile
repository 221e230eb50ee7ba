# Two images: `pillarbox` (the last stage, so the default) and `users`, the sample application.
#   docker build -t pillarbox .
#   docker build -t pillarbox-users --target users .

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked -p pillarbox-cli -p pillarbox-example-users \
    && install -D -t /out target/release/pillarbox target/release/users

FROM debian:bookworm-slim AS base
# Debian's slim image has no root certificates; a private authority is mounted over this file.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin pillarbox
USER 10001:10001
WORKDIR /etc/pillarbox

FROM base AS users
COPY --from=build /out/users /usr/local/bin/users
ENV LISTEN=0.0.0.0:8080 LOG_FORMAT=json
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8080"]
ENTRYPOINT ["users"]

FROM base AS pillarbox
COPY --from=build /out/pillarbox /usr/local/bin/pillarbox
ENV PILLARBOX_LOG_FORMAT=json
# Healthy: PostgreSQL answers, and every sink has an active relay.
HEALTHCHECK --interval=15s --timeout=10s --start-period=15s \
    CMD ["bash", "-c", "s=$(pillarbox status --json) && [[ $s == *'\"relay_active\": true'* && $s != *'\"relay_active\": false'* ]]"]
ENTRYPOINT ["pillarbox"]
CMD ["relay"]
