//! Reads a frame: what stands at fixed places straight from its linear part, everything else by the kernel, wherever it lies. Nothing
//! is pulled.

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::bindings::bpf_hdr_start_off::BPF_HDR_START_NET;
use aya_ebpf::helpers::{bpf_skb_load_bytes, bpf_skb_load_bytes_relative};
use aya_ebpf::programs::TcContext;
use hydra_common::address::Mac;
use hydra_common::packet::{Begin, Bytes, Chunk, Front, Packet};
use hydra_common::tables::Count;
use hydra_common::verdict::Reason;

use crate::global::{BAD, coded_unit, decoded_unit, global};

/// Offsets beyond this are not read: no header chain that the parser walks is longer.
const FARTHEST: usize = 0x0fff;
/// Ethernet header: what the wire carries in front of the packet.
pub const ETHERNET: u64 = 14;
/// `PACKET_BROADCAST` and `PACKET_MULTICAST` (linux/if_packet.h).
const BROADCAST: u32 = 1;
const MULTICAST: u32 = 2;

/// One frame, or, at the hooks on packets of processes, one packet from its IP header on.
pub struct Frame<'a> {
    ctx: &'a TcContext,
}

impl<'a> Frame<'a> {
    /// Of a program's context.
    #[inline(always)]
    pub fn new(ctx: &'a TcContext) -> Self {
        Self { ctx }
    }

    /// The context that the kernel gave.
    #[inline(always)]
    pub fn raw(&self) -> *mut __sk_buff {
        self.ctx.skb.skb
    }

    /// Whether a frame that comes in has no Ethernet header. Behind a generic XDP program that takes frames in several buffers the kernel
    /// no longer knows its length (`skb_pp_cow_data` makes another `skb`, without `mac_len`; Linux 6.9 to 6.18), and puts nothing back in
    /// front of what `wire_len` counts (`sch_handle_ingress`, `tcx_run`, `cls_bpf_classify`). In a test run that counts the header
    /// too, and kernels to come may add those of segments: there the frame itself has to say.
    #[inline(always)]
    pub fn bare(&self) -> bool {
        // SAFETY: the context is valid while the program runs.
        let (length, before) = unsafe { ((*self.raw()).len, (*self.raw()).wire_len) };
        before >= length && at_network(self.raw()) != 0
    }

    /// Wire packets and wire bytes: under GSO every segment repeats the headers up to `payload`. `missing`: bytes that have been taken
    /// off in front.
    #[inline(always)]
    pub fn wire(&self, payload: u16, missing: u64) -> Count {
        // SAFETY: the context is valid while the program runs.
        let (length, segments, size) =
            unsafe { ((*self.raw()).len, (*self.raw()).gso_segs, (*self.raw()).gso_size) };
        let (length, payload) = (u64::from(length), u64::from(payload));
        let segments = if segments != 0 {
            u64::from(segments)
        } else if size != 0 {
            // A sender that did not count its segments (SKB_GSO_DODGY).
            length.saturating_sub(payload).div_ceil(u64::from(size)).max(1)
        } else {
            1
        };
        Count { packets: segments, bytes: length + missing + (segments - 1) * (payload + missing) }
    }
}

/// The begin of a linear part that was long enough for what is read of it.
pub struct Linear(usize);

impl Linear {
    /// Of a part of at least `n` bytes.
    #[inline(always)]
    pub fn of((data, end): (usize, usize), n: usize) -> Option<Self> {
        if offset_by(data, n) > end { None } else { Some(Self(data)) }
    }
}

/// Reads at a place that stands in the instruction.
macro_rules! fixed {
    ($size:literal, $type:ty, $pointer:expr, $at:expr) => {{
        let value: u64;
        // SAFETY: what made the `Linear` has compared the place with the end, and the verifier sees to it.
        unsafe {
            core::arch::asm!(
                concat!("{v} = *(", $size, " *)({p} + {at})"),
                v = out(reg) value,
                p = in(reg) $pointer,
                at = const $at,
                options(readonly),
            );
        }
        value as $type
    }};
}

impl Front for Linear {
    #[inline(always)]
    fn byte<const AT: usize>(&self) -> u8 {
        fixed!("u8", u8, self.0, AT)
    }

    #[inline(always)]
    fn half<const AT: usize>(&self) -> u16 {
        fixed!("u16", u16, self.0, AT)
    }

    #[inline(always)]
    fn word<const AT: usize>(&self) -> u32 {
        fixed!("u32", u32, self.0, AT)
    }

    #[inline(always)]
    fn long<const AT: usize>(&self) -> u64 {
        fixed!("u64", u64, self.0, AT)
    }
}

impl Begin for Frame<'_> {
    type Front = Linear;

    #[inline(always)]
    fn front(&self, n: usize) -> Option<Linear> {
        Linear::of(skb_bounds(self.raw()), n)
    }
}

impl Bytes for Frame<'_> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<Chunk<N>> {
        if offset > FARTHEST {
            return None;
        }
        let mut bytes = MaybeUninit::<Chunk<N>>::uninit();
        // SAFETY: there is room for `N` bytes, all of which are written where the answer is 0.
        unsafe {
            let to = bytes.as_mut_ptr().cast();
            let missing = bpf_skb_load_bytes(self.raw().cast(), offset as u32, to, N as u32);
            if missing == 0 { Some(bytes.assume_init()) } else { None }
        }
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.ctx.len() as usize
    }

    #[inline(always)]
    fn tagged(&self) -> bool {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.raw()).vlan_present != 0 }
    }

    #[inline(always)]
    fn ipv4(&self, packet: &mut Packet) -> Result<(), Reason> {
        decoded_unit(ipv4(self.raw(), packet))
    }

    #[inline(always)]
    fn ipv6(&self, packet: &mut Packet) -> Result<(), Reason> {
        decoded_unit(ipv6(self.raw(), packet))
    }

    #[inline(always)]
    fn transport_header(&self, packet: &mut Packet) -> Result<(), Reason> {
        decoded_unit(transport_header(self.raw(), packet))
    }

    #[inline(always)]
    fn icmp(&self, packet: &mut Packet) -> Result<(), Reason> {
        decoded_unit(icmp(self.raw(), packet))
    }
}

global!(
/// Reads a frame.
pub fn parse = hydra_parse(skb: plain *mut __sk_buff, packet: into Packet) -> u32 or BAD; {
    coded_unit(packet.parse(&Frame::new(&TcContext::new(skb))))
});

global!(
/// Whether the data begin where the kernel says that the network header does: that place is not told, but then as many bytes as the
/// linear part has lie behind it.
fn at_network = hydra_at_network(skb: plain *mut __sk_buff) -> u32 or 0; {
    let (data, end) = skb_bounds(skb);
    let linear = (end - data) as u64;
    let mut last = 0_u8;
    // SAFETY: writes one byte. The kernel refuses offsets above 65,535, but another `skb` as above has no more than a page there.
    let missing = unsafe {
        bpf_skb_load_bytes_relative(skb.cast(), linear.wrapping_sub(1) as u32, (&raw mut last).cast(), 1, BPF_HDR_START_NET)
    };
    u32::from(missing == 0 || linear < ETHERNET)
});

global!(
/// Reads a frame whose Ethernet header is missing, by what the kernel knows of that.
pub fn parse_behind = hydra_parse_behind(skb: plain *mut __sk_buff, packet: into Packet) -> u32 or BAD; {
    // SAFETY: the context is valid while the program runs.
    let (ethertype, kind) = unsafe { (u16::from_be((*skb).protocol as u16), (*skb).pkt_type) };
    for_many(kind, packet);
    coded_unit(packet.parse_behind(&Frame::new(&TcContext::new(skb)), ethertype))
});

global!(
/// Reads a packet that no frame is around.
pub fn parse_bare = hydra_parse_bare(skb: plain *mut __sk_buff, packet: into Packet) -> u32 or BAD; {
    coded_unit(packet.parse_bare(&Frame::new(&TcContext::new(skb))))
});

global!(fn ipv4 = hydra_ipv4(skb: plain *mut __sk_buff, packet: into Packet) -> u32 or BAD; {
    coded_unit(packet.ipv4(&Frame::new(&TcContext::new(skb))))
});

global!(fn ipv6 = hydra_ipv6(skb: plain *mut __sk_buff, packet: into Packet) -> u32 or BAD; {
    coded_unit(packet.ipv6(&Frame::new(&TcContext::new(skb))))
});

global!(fn transport_header = hydra_transport(skb: plain *mut __sk_buff, packet: into Packet) -> u32 or BAD; {
    coded_unit(packet.transport_header(&Frame::new(&TcContext::new(skb))))
});

global!(fn icmp = hydra_icmp(skb: plain *mut __sk_buff, packet: into Packet) -> u32 or BAD; {
    coded_unit(packet.icmp(&Frame::new(&TcContext::new(skb))))
});

/// Gives a packet that came in a frame for many, by its type, the MAC that it no longer has. Only so is known what a network's broadcast
/// address is.
#[inline(always)]
pub fn for_many(kind: u32, packet: &mut Packet) {
    if matches!(kind, BROADCAST | MULTICAST) {
        packet.destination_mac = Mac::BROADCAST;
    }
}

/// Makes a packet what [`Packet::default`] is. The compiler, left to itself, calls a loop of bytes.
#[inline(always)]
pub fn clear(packet: &mut Packet) {
    const WORDS: usize = size_of::<Packet>() / 8;
    const { assert!(WORDS * 8 == size_of::<Packet>() && align_of::<Packet>() == 8) };
    // SAFETY: writes the whole of what is exclusively borrowed; zeros are the default of each of its fields.
    unsafe {
        core::arch::asm!(
            ".rept {words}",
            "*(u64 *)({p} + 0) = {zero}",
            "{p} += 8",
            ".endr",
            words = const WORDS,
            p = inout(reg) &raw mut *packet => _,
            zero = in(reg) 0u64,
            options(nostack),
        );
    }
}

#[inline(always)]
fn skb_bounds(skb: *mut __sk_buff) -> (usize, usize) {
    // SAFETY: the context is valid while the program runs.
    unsafe {
        bounds::<{ core::mem::offset_of!(__sk_buff, data) }, { core::mem::offset_of!(__sk_buff, data_end) }>(
            skb.cast(),
        )
    }
}

/// Where the linear part begins and ends. The two words of the context, which stand at `DATA` and `END`, are pointers in the verifier's
/// eyes only when they are read like this: the compiler, left to itself, keeps them as numbers of 32 bits.
///
/// # Safety
/// `context` is a program's, with those words in it.
#[inline(always)]
pub unsafe fn bounds<const DATA: usize, const END: usize>(context: *mut c_void) -> (usize, usize) {
    let (data, end): (usize, usize);
    // SAFETY: as promised by the caller.
    unsafe {
        core::arch::asm!(
            "{data} = *(u32 *)({context} + {data_at})",
            "{end} = *(u32 *)({context} + {end_at})",
            context = in(reg) context,
            data = out(reg) data,
            end = lateout(reg) end,
            data_at = const DATA,
            end_at = const END,
        );
    }
    (data, end)
}

/// The sum, in instructions that the compiler can neither fold into a later one nor leave out: the verifier ties a bounds check to
/// the register that was checked, a sum that is made twice is two registers to it, and the offset's bound must be in its sight.
#[inline(always)]
fn offset_by(pointer: usize, offset: usize) -> usize {
    let mut sum = pointer;
    // SAFETY: arithmetic on registers.
    unsafe {
        core::arch::asm!(
            "{offset} &= {farthest}",
            "{sum} += {offset}",
            sum = inout(reg) sum,
            offset = inout(reg) offset => _,
            farthest = const FARTHEST,
            options(pure, nomem),
        );
    }
    sum
}
