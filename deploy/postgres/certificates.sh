# Certificates of this compose file's own PostgreSQL, made once: an authority, whose key is thrown away at once, and one
# certificate for the host name `postgres`. Arguments: the folder of the server, that of the authority, the server's user.
set -eu
server=$1 authority=$2 user=$3
[ ! -e "$authority/ca.pem" ] || exit 0
umask 077
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
new="openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -sha256"
$new -x509 -days 3650 -subj "/CN=checkpointing compose" -keyout "$work/ca.key" -out "$work/ca.pem" \
    -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign
$new -subj /CN=postgres -keyout "$work/server.key" -out "$work/server.csr"
printf 'subjectAltName=DNS:postgres\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n' > "$work/extensions"
openssl x509 -req -days 3650 -sha256 -in "$work/server.csr" -CA "$work/ca.pem" -CAkey "$work/ca.key" \
    -CAcreateserial -extfile "$work/extensions" -out "$work/server.pem"
cp "$work/server.key" "$work/server.pem" "$server/"
chown "$user" "$server/server.key" "$server/server.pem"
chmod 600 "$server/server.key"
chmod 755 "$authority"
cp "$work/ca.pem" "$authority/ca.part"
chmod 644 "$authority/ca.part"
mv "$authority/ca.part" "$authority/ca.pem" # last: what is begun and not finished is begun again
