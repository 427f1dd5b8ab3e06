//! What the outside may not reach is dropped before the kernel makes anything of it. Only a denial of a plain frame ends here, counted
//! and told as the classifier of the same interface would; everything else leaves no trace and is the classifier's.

use core::mem::{MaybeUninit, offset_of};

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::bpf_xdp_load_bytes;
use aya_ebpf::programs::XdpContext;
use hydra_common::decide::{At, Step, decide};
use hydra_common::packet::{Begin, Bytes, Chunk};
use hydra_common::tables::Count;
use hydra_common::verdict::{Hook, Verdict};

use crate::act::coarse;
use crate::maps::{self, Maps, Scratch};
use crate::report;
use crate::skb::{self, Linear};

/// A frame in the driver's memory, whole. A tag that the card has taken off is not seen here; at an
/// uplink the verdict is the same with it.
struct Raw(*mut xdp_md);

impl Raw {
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        // SAFETY: the context is valid while the program runs.
        unsafe {
            skb::bounds::<{ offset_of!(xdp_md, data) }, { offset_of!(xdp_md, data_end) }>(self.0.cast())
        }
    }
}

impl Begin for Raw {
    type Front = Linear;

    #[inline(always)]
    fn front(&self, n: usize) -> Option<Linear> {
        Linear::of(self.bounds(), n)
    }
}

impl Bytes for Raw {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<Chunk<N>> {
        let mut bytes = MaybeUninit::<Chunk<N>>::uninit();
        // SAFETY: there is room for `N` bytes, all of which are written where the answer is 0. Linux 5.18.
        unsafe {
            let to = bytes.as_mut_ptr().cast();
            let missing = bpf_xdp_load_bytes(self.0, offset as u32, to, N as u32);
            if missing == 0 { Some(bytes.assume_init()) } else { None }
        }
    }

    #[inline(always)]
    fn length(&self) -> usize {
        let (data, end) = self.bounds();
        end - data
    }

    #[inline(always)]
    fn tagged(&self) -> bool {
        false
    }
}

/// One frame.
#[inline(always)]
pub fn run(ctx: &XdpContext) -> u32 {
    let frame = Raw(ctx.ctx);
    let Some(Scratch { tick, packet, outcome, .. }) = maps::scratch() else { return XDP_PASS };
    if !packet.plain(&frame) {
        return XDP_PASS;
    }
    // SAFETY: the context is valid while the program runs.
    let ifindex = unsafe { (*frame.0).ingress_ifindex };
    // On the stack: see `act::run`.
    let at = &At { hook: Hook::UplinkIn, ifindex, ingress: ifindex, mark: 0, now: coarse(tick) };
    // The look-up of a flow is for who goes on with it.
    let _ = decide(&Maps, packet, Ok(()), at, outcome);
    // Whose entry has to go, too, is the classifier's to deny.
    if !matches!(outcome.verdict, Verdict::Denied) || matches!(outcome.step, Step::End) {
        return XDP_PASS;
    }
    let count = Count { packets: 1, bytes: frame.length() as u64 };
    report::report(packet, outcome, at, &count);
    XDP_DROP
}
