# Clears up after an engine as soon as standard input ends, which the kernel sees to however the test process ends.
# Arguments: the control group that everything was started in, the directory on disk.
set -u
group=$1 directory=$2

cat > /dev/null
if ! echo 1 2> /dev/null > "$group/cgroup.kill"; then
    # Before Linux 5.14.
    find "$group" -name cgroup.procs -exec cat {} + | xargs -r kill -9
fi
tries=0
while grep -q '^populated 1' "$group/cgroup.events" && [ $tries -lt 200 ]; do
    sleep 0.02
    tries=$((tries + 1))
done
find "$group" -depth -type d -exec rmdir {} +
rm -rf "$directory"
