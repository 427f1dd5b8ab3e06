#!/bin/sh
# Finishes the image of the real servers: gets the folder it is made in as argument.
set -eu
root=$1

# Postgres' just-in-time compiler is half of the image, and nothing here needs it.
rm -rf "$root"/usr/lib/*/libLLVM* "$root"/usr/lib/*/libz3* "$root"/usr/lib/postgresql/*/lib/llvmjit* \
    "$root"/usr/lib/postgresql/*/lib/bitcode "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*

for configuration in "$root"/etc/postgresql/*/main; do
    printf 'host all all all trust\nlocal all all trust\n' > "$configuration/pg_hba.conf"
    cat >> "$configuration/postgresql.conf" <<'END'
listen_addresses = '*'
unix_socket_directories = '/tmp'
ssl = off
jit = off
fsync = off
END
done

cat > "$root/usr/local/bin/serve" <<'END'
#!/bin/sh
# serve postgres | serve redis | serve web PORT... | serve nothing
set -eu
server=$1
shift
case $server in
postgres)
    version=$(ls /usr/lib/postgresql)
    exec setpriv --reuid postgres --regid postgres --init-groups \
        "/usr/lib/postgresql/$version/bin/postgres" -c "config_file=/etc/postgresql/$version/main/postgresql.conf"
    ;;
redis)
    exec redis-server --bind '*' '-::*' --protected-mode no --save '' --dir /tmp
    ;;
web)
    {
        echo 'events {}'
        echo 'http { access_log off; server {'
        for port in "$@"; do
            echo "listen $port; listen [::]:$port;"
        done
        # The caller's address in the answer shows what a path did to it.
        echo "location / { return 200 \"\$hostname \$remote_addr\\n\"; } } }"
    } > /tmp/nginx.conf
    exec nginx -c /tmp/nginx.conf -g 'daemon off;'
    ;;
nothing)
    exec sleep infinity
    ;;
esac
END
chmod 0755 "$root/usr/local/bin/serve"
