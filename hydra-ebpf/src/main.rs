//! The kernel object: five entry points, each one expression. What a packet means is decided in `hydra-common`; here are only the
//! skb, the maps and the consequences.
#![no_std]
#![no_main]
// The only way to say `lock add` and "leave this register alone" for this target; aya-ebpf needs it too.
#![feature(asm_experimental_arch)]

mod act;
mod global;
mod maps;
mod parts;
mod report;
mod skb;

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use hydra_common::verdict::Hook;

/// TC ingress of a container's host-side veth.
#[classifier]
pub fn hydra_port_in(ctx: TcContext) -> i32 {
    act::run(&ctx, Hook::PortIn)
}

/// TC egress of a container's host-side veth.
#[classifier]
pub fn hydra_port_out(ctx: TcContext) -> i32 {
    act::run(&ctx, Hook::PortOut)
}

/// TC ingress of a bridge.
#[classifier]
pub fn hydra_bridge_in(ctx: TcContext) -> i32 {
    act::run(&ctx, Hook::BridgeIn)
}

/// TC egress of a bridge.
#[classifier]
pub fn hydra_bridge_out(ctx: TcContext) -> i32 {
    act::run(&ctx, Hook::BridgeOut)
}

/// TC ingress of an interface to the outside.
#[classifier]
pub fn hydra_uplink_in(ctx: TcContext) -> i32 {
    act::run(&ctx, Hook::UplinkIn)
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
