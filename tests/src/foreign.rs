//! Other users of the same host: small programs that somebody else attaches around hydra's, and that count what they get.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, Map, MapData};

use crate::topology::HOST;
use crate::world::World;

// Numbers of `linux/bpf.h`.
const MAP_CREATE: u32 = 0;
const PROG_LOAD: u32 = 5;
const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const PROG_QUERY: u32 = 16;
const LINK_CREATE: u32 = 28;
const LINK_DETACH: u32 = 34;
const ARRAY: u32 = 2;
const CLASSIFIER: u32 = 3;
const XDP: u32 = 6;
const BEFORE: u32 = 1 << 3;
const XDP_PASS: i32 = 2;
/// `BPF_F_XDP_HAS_FRAGS`.
const HAS_FRAGS: u32 = 1 << 5;
/// `PACKET_LOOPBACK` (linux/if_packet.h).
const LOOPBACK: i32 = 5;

/// What a program does with every packet, beside counting it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Does {
    /// Leaves it to the next program (`TCX_NEXT`).
    Pass,
    /// Accepts it: no other program runs (`TC_ACT_OK`).
    Accept,
    /// Drops it (`TC_ACT_SHOT`).
    Drop,
    /// Sets its mark and leaves it to the next.
    Mark(u32),
    /// Sets its mark and accepts it.
    MarkAndAccept(u32),
    /// An XDP program that passes everything.
    Xdp,
    /// The same, which says that it takes frames in several buffers: behind its generic kind classifiers see no Ethernet header.
    XdpFrags,
    /// Counts only the kernel's own copies of what this namespace sends to a group, and leaves everything to the next program.
    CountCopies,
    /// The same, and sends each of them away by an interface as a frame.
    SendCopies {
        /// The interface's number.
        by: u32,
        /// The Ethernet header.
        header: [u8; 14],
        /// To the other end's namespace, without that interface's own egress (`bpf_redirect_peer`).
        peer: bool,
    },
}

/// The side of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// What it receives.
    Ingress,
    /// What it sends.
    Egress,
}

/// A loaded program of somebody else.
pub struct Foreign {
    program: OwnedFd,
    id: u32,
    count: Array<MapData, u64>,
    name: String,
}

impl Foreign {
    /// Loads it under this name.
    pub fn load(name: &str, does: Does) -> Result<Self> {
        let count = bpf(MAP_CREATE, &[ARRAY, 4, 8, 1])?;
        let code = code(does, count.as_raw_fd());
        let license = c"GPL";
        let kind = if matches!(does, Does::Xdp | Does::XdpFrags) { XDP } else { CLASSIFIER };
        let flags = if does == Does::XdpFrags { HAS_FRAGS } else { 0 };
        let mut attr = vec![kind, code.len() as u32];
        attr.extend(halves(code.as_ptr() as u64));
        attr.extend(halves(license.as_ptr() as u64));
        // No log, and no version of the kernel.
        attr.extend([0, 0, 0, 0, 0, flags]);
        let program = bpf(PROG_LOAD, &attr).context("cannot load a foreign program")?;
        let count = Map::from_map_data(MapData::from_fd(count)?)?.try_into()?;
        let id = id(&program)?;
        Ok(Self { program, id, count, name: name.to_owned() })
    }

    /// The kernel's number of it.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// How many packets it has got.
    pub fn runs(&self) -> Result<u64> {
        Ok(self.count.get(&0, 0)?)
    }

    /// Attaches it as TCX link to an interface of the host, first or last. It goes with the descriptor.
    pub fn tcx(&self, world: &World, interface: &str, side: Side, first: bool) -> Result<OwnedFd> {
        self.tcx_in(world, HOST, interface, side, first)
    }

    /// The same to an interface of any place.
    pub fn tcx_in(
        &self,
        world: &World,
        place: &str,
        interface: &str,
        side: Side,
        first: bool,
    ) -> Result<OwnedFd> {
        let index = world.ifindex(place, interface)?;
        let flags = if first { BEFORE } else { 0 };
        let attr = [self.program.as_raw_fd().cast_unsigned(), index, attach_type(side), flags, 0, 0, 0, 0];
        world
            .enter(place, || bpf(LINK_CREATE, &attr))?
            .with_context(|| format!("cannot attach to {interface}"))
    }

    /// Attaches it as a filter of this preference.
    pub fn clsact(&self, world: &World, interface: &str, side: Side, preference: u32) -> Result<()> {
        let (pin, side) = (self.pin(world)?, if side == Side::Ingress { "ingress" } else { "egress" });
        let _ = tc(world, &format!("qdisc add dev {interface} clsact"));
        tc(
            world,
            &format!(
                "filter add dev {interface} {side} pref {preference} protocol all bpf da object-pinned {}",
                pin.display()
            ),
        )
    }

    /// Attaches an XDP program, generic.
    pub fn xdp(&self, world: &World, interface: &str) -> Result<()> {
        let pin = self.pin(world)?;
        world.ip(HOST, &[format!("link set dev {interface} xdpgeneric pinned {}", pin.display())])
    }

    /// Pins it in the world's bpffs, beside hydra's directory.
    pub fn pin(&self, world: &World) -> Result<PathBuf> {
        let path = world.bpffs().join(&self.name);
        let text = std::ffi::CString::new(path.display().to_string())?;
        let [low, high] = halves(text.as_ptr() as u64);
        let attr = [low, high, self.program.as_raw_fd().cast_unsigned()];
        match world.enter(HOST, || command(OBJ_PIN, &attr))? {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error.into()),
            _ => Ok(path),
        }
    }
}

/// Runs `tc ARGUMENTS` on the host.
pub fn tc(world: &World, arguments: &str) -> Result<()> {
    let mut command = Command::new("tc");
    command.args(arguments.split_whitespace());
    let output = world.output(HOST, command)?;
    ensure!(
        output.status.success(),
        "`tc {arguments}` failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// The numbers of the programs of a TCX chain, in their order.
pub fn chain(world: &World, interface: &str, side: Side) -> Result<Vec<u32>> {
    let index = world.ifindex(HOST, interface)?;
    let mut programs = [0u32; 64];
    let mut attr = [0u32; 18];
    attr[..2].copy_from_slice(&[index, attach_type(side)]);
    attr[4..6].copy_from_slice(&halves(programs.as_mut_ptr() as u64));
    attr[6] = programs.len() as u32;
    world.enter(HOST, || command(PROG_QUERY, &attr))??;
    Ok(programs.into_iter().take_while(|id| *id != 0).collect())
}

/// Detaches a pinned link of somebody, as `bpftool link detach` does.
pub fn detach(world: &World, pin: &std::path::Path) -> Result<()> {
    let text = std::ffi::CString::new(pin.display().to_string())?;
    let [low, high] = halves(text.as_ptr() as u64);
    let link = world.enter(HOST, || bpf(OBJ_GET, &[low, high, 0, 0]))??;
    command(LINK_DETACH, &[link.as_raw_fd().cast_unsigned()])?;
    Ok(())
}

fn attach_type(side: Side) -> u32 {
    match side {
        Side::Ingress => 46,
        Side::Egress => 47,
    }
}

/// Counts the packet, does what it shall to the mark, and returns its verdict.
fn code(does: Does, count: i32) -> Vec<[u8; 8]> {
    // Operation, destination and source register, offset, immediate (`struct bpf_insn`).
    let instruction = |operation: u8, to: u8, from: u8, offset: i16, immediate: i32| {
        let (o, i) = (offset.to_ne_bytes(), immediate.to_ne_bytes());
        [operation, to | from << 4, o[0], o[1], i[0], i[1], i[2], i[3]]
    };
    let (mark, verdict) = match does {
        Does::Pass | Does::CountCopies | Does::SendCopies { .. } => (None, -1),
        Does::Accept => (None, 0),
        Does::Drop => (None, 2),
        Does::Mark(mark) => (Some(mark), -1),
        Does::MarkAndAccept(mark) => (Some(mark), 0),
        Does::Xdp | Does::XdpFrags => (None, XDP_PASS),
    };
    let mut code = vec![instruction(0xbf, 6, 1, 0, 0)]; // r6 = context
    if matches!(does, Does::CountCopies | Does::SendCopies { .. }) {
        code.extend([
            instruction(0x61, 1, 6, 4, 0),        // r1 = context->pkt_type
            instruction(0x15, 1, 0, 2, LOOPBACK), // a copy: over the next two
            instruction(0xb7, 0, 0, 0, verdict),
            instruction(0x95, 0, 0, 0, 0),
        ]);
    }
    code.extend([
        instruction(0x62, 10, 0, -4, 0),   // key 0 on the stack
        instruction(0xbf, 2, 10, 0, 0),    // r2 = r10
        instruction(0x07, 2, 0, 0, -4),    // r2 -= 4
        instruction(0x18, 1, 1, 0, count), // r1 = the map
        instruction(0, 0, 0, 0, 0),
        instruction(0x85, 0, 0, 0, 1), // bpf_map_lookup_elem
        instruction(0x15, 0, 0, 2, 0), // none: over the next two
        instruction(0xb7, 1, 0, 0, 1), // r1 = 1
        instruction(0xdb, 0, 1, 0, 0), // lock *(u64 *)r0 += r1
    ]);
    if let Some(mark) = mark {
        code.push(instruction(0xb7, 1, 0, 0, mark.cast_signed()));
        code.push(instruction(0x63, 6, 1, 8, 0)); // context->mark = r1
    }
    if let Does::SendCopies { by, header, peer } = does {
        let word =
            |at: usize| i32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let last = i32::from(i16::from_ne_bytes([header[12], header[13]]));
        code.extend([
            instruction(0xbf, 1, 6, 0, 0),
            instruction(0xb7, 2, 0, 0, 14),
            instruction(0xb7, 3, 0, 0, 0),
            instruction(0x85, 0, 0, 0, 43), // bpf_skb_change_head: room for the header
            instruction(0x62, 10, 0, -16, word(0)),
            instruction(0x62, 10, 0, -12, word(4)),
            instruction(0x62, 10, 0, -8, word(8)),
            instruction(0x6a, 10, 0, -4, last),
            instruction(0xbf, 1, 6, 0, 0),
            instruction(0xb7, 2, 0, 0, 0),
            instruction(0xbf, 3, 10, 0, 0),
            instruction(0x07, 3, 0, 0, -16),
            instruction(0xb7, 4, 0, 0, 14),
            instruction(0xb7, 5, 0, 0, 0),
            instruction(0x85, 0, 0, 0, 9), // bpf_skb_store_bytes
            instruction(0xb7, 1, 0, 0, by.cast_signed()),
            instruction(0xb7, 2, 0, 0, 0),
            instruction(0x85, 0, 0, 0, if peer { 155 } else { 23 }), // bpf_redirect_peer, bpf_redirect
        ]);
    } else {
        code.push(instruction(0xb7, 0, 0, 0, verdict));
    }
    code.push(instruction(0x95, 0, 0, 0, 0));
    code
}

/// A 64-bit field of an argument in words of 32.
fn halves(value: u64) -> [u32; 2] {
    let bytes = value.to_ne_bytes();
    let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    [word(0), word(4)]
}

fn id(program: &OwnedFd) -> Result<u32> {
    let path = format!("/proc/self/fdinfo/{}", program.as_fd().as_raw_fd());
    let text = std::fs::read_to_string(path)?;
    let id = text.lines().find_map(|line| line.strip_prefix("prog_id:"));
    Ok(id.context("a program has a number")?.trim().parse()?)
}

/// `bpf(2)` with an argument in words of 32 bits; the kernel takes what is left out as zero.
fn command(number: u32, attr: &[u32]) -> io::Result<i64> {
    let mut attr = attr.to_vec();
    // SAFETY: a live argument of the length given; pointers in it are to buffers that the callers keep alive and that are as long
    // as they say.
    let done = unsafe { libc::syscall(libc::SYS_bpf, number, attr.as_mut_ptr(), attr.len() * 4) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done) }
}

fn bpf(number: u32, attr: &[u32]) -> io::Result<OwnedFd> {
    let fd = command(number, attr)?;
    // SAFETY: a fresh descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
