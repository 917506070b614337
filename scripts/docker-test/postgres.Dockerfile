# Stands in for postgres:17 where no registry can be reached: Debian's PostgreSQL behind the same contract.
FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends gosu postgresql postgresql-client \
    && rm -rf /var/lib/apt/lists/* /var/lib/postgresql/*/main \
    && ln -s /usr/lib/postgresql/* /usr/lib/postgresql/current
ENV PATH=/usr/lib/postgresql/current/bin:$PATH PGDATA=/var/lib/postgresql/data
COPY postgres-entry.sh /usr/local/bin/docker-entrypoint.sh
VOLUME /var/lib/postgresql/data
EXPOSE 5432
STOPSIGNAL SIGINT
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["postgres"]
