# One static binary and nothing else: docker build -t lorakit . && docker run --rm -v "$PWD:/work" lorakit inspect lora
FROM rust:1.95-alpine AS build
RUN apk add --no-cache musl-dev gcc
COPY . /lorakit
WORKDIR /lorakit
RUN cargo build --release --locked && cp target/release/lorakit /usr/local/bin/

FROM scratch
COPY --from=build /usr/local/bin/lorakit /lorakit
COPY LICENSE-MIT LICENSE-APACHE /
WORKDIR /work
ENTRYPOINT ["/lorakit"]
