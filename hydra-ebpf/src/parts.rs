//! The parts of the verdict function, as global functions.

use core::mem::MaybeUninit;

use hydra_common::decide::{At, Outcome, Parts, Ruling, part};
use hydra_common::flow::Flow;
use hydra_common::id::Identity;
use hydra_common::packet::Packet;
use hydra_common::tables::Link;
use hydra_common::verdict::{Reason, Verdict};

use crate::global::{BAD, coded, coded_unit, decoded, decoded_unit, global};
use crate::maps::Maps;

global!(fn resolve = hydra_resolve(packet: into Packet, at: of At, out: into Outcome) -> u32 or BAD; {
    coded(part::resolve(&Maps, packet, at, out))
});

global!(fn related = hydra_related(
    packet: of Packet, at: of At, out: into Outcome, link: perhaps Link
) -> u32 or BAD; {
    coded_unit(part::related(&Maps, packet, at, out, link))
});

global!(fn ended = hydra_ended(flow: of Flow, protocol: plain u32, now: plain u64) -> u32 or 1; {
    u32::from(part::ended(flow, protocol as u8, now))
});

global!(fn may_be_left = hydra_may_be_left(
    bank: plain u32, source: plain u32, selector: plain u32, now_s: plain u32
) -> u32 or 0; {
    u32::from(part::may_be_left(&Maps, bank, Identity(source as u16), selector, now_s))
});

global!(fn stands = hydra_stands(packet: of Packet, at: of At, out: of Outcome, flow: of Flow) -> u32 or 0; {
    u32::from(part::stands(&Maps, packet, at, out, flow))
});

global!(fn named = hydra_named(
    packet: of Packet, at: of At, out: into Outcome, link: perhaps Link
) -> u32 or BAD; {
    coded(part::named(&Maps, packet, at, out, link))
});

global!(fn source = hydra_source(packet: of Packet, out: into Outcome, link: perhaps Link) -> u32 or BAD; {
    coded_unit(part::source(&Maps, packet, out, link))
});

global!(fn denied = hydra_denied(
    packet: of Packet, at: of At, out: into Outcome, link: perhaps Link
) -> u32 or 0; {
    u32::from(part::denied(&Maps, packet, at, out, link))
});

global!(fn first = hydra_first(
    packet: of Packet, at: of At, out: into Outcome, link: perhaps Link
) -> u32 or BAD; {
    coded(part::first(&Maps, packet, at, out, link))
});

global!(fn open = hydra_open(packet: of Packet, at: of At, out: into Outcome, live: perhaps Flow) {
    part::open(&Maps, packet, at, out, live);
});

global!(fn way = hydra_way(
    packet: of Packet, at: of At, out: into Outcome, link: perhaps Link
) -> u32 or BAD; {
    coded_unit(part::way(&Maps, packet, at, out, link))
});

global!(fn claimed = hydra_claimed(packet: of Packet, at: of At, out: into Outcome) -> u32 or 0; {
    u32::from(part::claimed(&Maps, packet, at, out))
});

global!(fn ruling = hydra_ruling(
    bank: plain u32, pair: plain u32, selector: plain u32, now_s: plain u32, said: into Ruling
) {
    *said = part::ruling(&Maps, bank, Identity((pair >> 16) as u16), Identity(pair as u16), selector, now_s);
});

global!(fn alive = hydra_alive(bank: plain u32, first: plain u32, now_s: plain u32, said: into Ruling) {
    *said = part::alive(&Maps, bank, first, now_s);
});

/// [`Ruling::CLOSED`]. The compiler, left to itself, calls a loop of bytes.
#[inline(always)]
fn closed() -> Ruling {
    const { assert!(size_of::<Ruling>() == 16 && Reason::BadTable as u8 == 0 && Verdict::Denied as u8 == 0) };
    let mut said = MaybeUninit::<Ruling>::uninit();
    // SAFETY: writes all of it; zeros are what `CLOSED` is.
    unsafe {
        core::arch::asm!(
            "*(u32 *)({p} + 0) = {zero}",
            "*(u32 *)({p} + 4) = {zero}",
            "*(u32 *)({p} + 8) = {zero}",
            "*(u32 *)({p} + 12) = {zero}",
            p = in(reg) said.as_mut_ptr(),
            zero = in(reg) 0u64,
            options(nostack),
        );
        said.assume_init()
    }
}

impl Parts for Maps {
    #[inline(always)]
    fn resolve(&self, packet: &mut Packet, at: &At, out: &mut Outcome) -> Result<bool, Reason> {
        decoded(resolve(packet, at, out))
    }

    #[inline(always)]
    fn related(
        &self,
        packet: &Packet,
        at: &At,
        out: &mut Outcome,
        link: Option<&Link>,
    ) -> Result<(), Reason> {
        decoded_unit(related(packet, at, out, link))
    }

    #[inline(always)]
    fn ended(&self, flow: &Flow, protocol: u8, now: u64) -> bool {
        ended(flow, u32::from(protocol), now) != 0
    }

    #[inline(always)]
    fn may_be_left(&self, bank: u32, source: Identity, selector: u32, now_s: u32) -> bool {
        may_be_left(bank, u32::from(source.0), selector, now_s) != 0
    }

    #[inline(always)]
    fn stands(&self, packet: &Packet, at: &At, out: &Outcome, flow: &Flow) -> bool {
        stands(packet, at, out, flow) != 0
    }

    #[inline(always)]
    fn named(
        &self,
        packet: &Packet,
        at: &At,
        out: &mut Outcome,
        link: Option<&Link>,
    ) -> Result<bool, Reason> {
        decoded(named(packet, at, out, link))
    }

    #[inline(always)]
    fn source(&self, packet: &Packet, out: &mut Outcome, link: Option<&Link>) -> Result<(), Reason> {
        decoded_unit(source(packet, out, link))
    }

    #[inline(always)]
    fn denied(&self, packet: &Packet, at: &At, out: &mut Outcome, link: Option<&Link>) -> bool {
        denied(packet, at, out, link) != 0
    }

    #[inline(always)]
    fn first(
        &self,
        packet: &Packet,
        at: &At,
        out: &mut Outcome,
        link: Option<&Link>,
    ) -> Result<bool, Reason> {
        decoded(first(packet, at, out, link))
    }

    #[inline(always)]
    fn open(&self, packet: &Packet, at: &At, out: &mut Outcome, live: Option<&Flow>) {
        open(packet, at, out, live);
    }

    #[inline(always)]
    fn ruling(
        &self,
        bank: u32,
        source: Identity,
        destination: Identity,
        selector: u32,
        now_s: u32,
    ) -> Ruling {
        let mut said = closed();
        let pair = u32::from(source.0) << 16 | u32::from(destination.0);
        ruling(bank, pair, selector, now_s, &mut said);
        said
    }

    #[inline(always)]
    fn alive(&self, bank: u32, first: u32, now_s: u32) -> Ruling {
        let mut said = closed();
        alive(bank, first, now_s, &mut said);
        said
    }

    #[inline(always)]
    fn claimed(&self, packet: &Packet, at: &At, out: &mut Outcome) -> bool {
        claimed(packet, at, out) != 0
    }

    #[inline(always)]
    fn way(&self, packet: &Packet, at: &At, out: &mut Outcome, link: Option<&Link>) -> Result<(), Reason> {
        decoded_unit(way(packet, at, out, link))
    }
}
