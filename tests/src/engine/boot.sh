# Turns a folder into the root of a mount namespace of its own and stays there: who enters the namespace of this process sees
# a machine of its own. Runs in fresh mount and cgroup namespaces, in the network namespace of the host that is played.
# Arguments: the folder, a scratch directory, the directory for /run, the directory for /var/lib/docker, the control group.
set -eu
folder=$1 scratch=$2 run=$3 data=$4 group=$5

# The group's root must stay empty of processes, or no controller could be given to the containers below it.
echo 0 > "$group/engine/cgroup.procs"

mkdir -p "$scratch/upper" "$scratch/work" "$scratch/root"
cd "$scratch"
# Nothing that the engine writes reaches the folder, which other engines share.
mount -t overlay overlay -o "lowerdir=$folder,upperdir=upper,workdir=work" root
cd root
mkdir -p var/lib/docker run dev proc sys .old
mount --bind "$data" var/lib/docker
mount --bind "$run" run
mount --rbind /dev dev
mount -t proc proc proc
mount -t sysfs sysfs sys
# Of the machine's control groups only version 2, and of that only the part below our own group: whatever the machine has
# mounted, the engine meets the same arrangement, and makes its groups nowhere else.
mount -t cgroup2 cgroup2 sys/fs/cgroup
pivot_root . .old
umount -l /.old
echo ready
exec sleep infinity
