//! The kernel object: the entry points, each one expression. What a packet means is decided in `hydra-common`; here are only the
//! skb, the maps and the consequences.
#![no_std]
#![no_main]
// The only way to say `lock add` and "leave this register alone" for this target; aya-ebpf needs it too.
#![feature(asm_experimental_arch)]

mod act;
mod entry;
mod flows;
mod global;
mod maps;
mod near;
mod own;
mod parts;
mod pass;
mod predrop;
mod report;
mod skb;
mod sock;

use aya_ebpf::macros::{cgroup_skb, cgroup_sock_addr, classifier, xdp};
use aya_ebpf::programs::{SkBuffContext, SockAddrContext, TcContext, XdpContext};
use hydra_common::verdict::Hook;

/// TC ingress of a container's host-side veth.
#[classifier]
#[inline(always)]
pub fn hydra_port_in(ctx: TcContext) -> i32 {
    act::run(&ctx, Hook::PortIn)
}

/// TC egress of a container's host-side veth.
#[classifier]
#[inline(always)]
pub fn hydra_port_out(ctx: TcContext) -> i32 {
    act::run(&ctx, Hook::PortOut)
}

/// TC ingress of a bridge.
#[classifier]
#[inline(always)]
pub fn hydra_bridge_in(ctx: TcContext) -> i32 {
    act::run(&ctx, Hook::BridgeIn)
}

/// TC egress of a bridge.
#[classifier]
#[inline(always)]
pub fn hydra_bridge_out(ctx: TcContext) -> i32 {
    act::run(&ctx, Hook::BridgeOut)
}

/// TC ingress of an interface to the outside.
#[classifier]
#[inline(always)]
pub fn hydra_uplink_in(ctx: TcContext) -> i32 {
    act::run(&ctx, Hook::UplinkIn)
}

/// An interface to the outside, before the kernel makes anything of a frame. Not for frames in several buffers: of a program that says it
/// takes such the generic kind makes another `skb` without `mac_len`, and classifiers then see no Ethernet header
/// (`skb_pp_cow_data`, Linux 6.9, commit e6d5dbdd20aa; still so in 6.18).
#[xdp]
pub fn hydra_predrop(ctx: XdpContext) -> u32 {
    predrop::run(&ctx)
}

/// Takes entries out of the flow table. On no hook: the agent runs it.
#[classifier]
pub fn hydra_sweep(ctx: TcContext) -> i32 {
    flows::sweep(&ctx)
}

/// A process connects a socket of IPv4.
#[cgroup_sock_addr(connect4)]
pub fn hydra_connect4(ctx: SockAddrContext) -> i32 {
    sock::run(&ctx, sock::Family::V4)
}

/// A process connects a socket of IPv6.
#[cgroup_sock_addr(connect6)]
pub fn hydra_connect6(ctx: SockAddrContext) -> i32 {
    sock::run(&ctx, sock::Family::V6)
}

/// A process sends a datagram of IPv4 by a socket that is not connected.
#[cgroup_sock_addr(sendmsg4)]
pub fn hydra_sendmsg4(ctx: SockAddrContext) -> i32 {
    sock::run(&ctx, sock::Family::V4)
}

/// A process sends a datagram of IPv6 by a socket that is not connected.
#[cgroup_sock_addr(sendmsg6)]
pub fn hydra_sendmsg6(ctx: SockAddrContext) -> i32 {
    sock::run(&ctx, sock::Family::V6)
}

/// What a process on this host's own stack receives.
#[cgroup_skb(ingress)]
pub fn hydra_cgroup_in(ctx: SkBuffContext) -> i32 {
    own::run(&ctx, Hook::CgroupIn)
}

/// What it sends.
#[cgroup_skb(egress)]
pub fn hydra_cgroup_out(ctx: SkBuffContext) -> i32 {
    own::run(&ctx, Hook::CgroupOut)
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing here panics; the verifier would refuse the loop if it were reachable.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
