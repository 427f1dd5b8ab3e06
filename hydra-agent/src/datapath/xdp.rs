//! XDP programs on interfaces, as the kernel lists them: hydra's own pre-drop, and those of others. These see a frame before every
//! classifier, and what they redirect no classifier sees: hydra removes none of them and says that they are there.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;

use super::rtnetlink::{ACK, DUMP, Request, attributes, word};

// Numbers of `linux/rtnetlink.h` and `linux/if_link.h`.
const GET_LINK: u16 = 18;
const LINK: u16 = 5;
/// `IFLA_LINK_NETNSID`: the other one is in another namespace.
const LINK_NAMESPACE: u16 = 37;
const MASTER: u16 = 10;
const LINK_INFO: u16 = 18;
const INFO_KIND: u16 = 1;
const EXT_MASK: u16 = 29;
const XDP: u16 = 43;
const XDP_ATTACHED: u16 = 2;
const XDP_PROGRAM: u16 = 4;
/// `RTEXT_FILTER_SKIP_STATS`.
const SKIP_STATS: u32 = 1 << 3;
/// Bytes of `ifinfomsg`.
const INFO: usize = 16;
/// `ARPHRD_ETHER`.
const ETHERNET: u16 = 1;

/// How a program sits on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the driver.
    Native,
    /// In the kernel's receive path, on any driver.
    Generic,
    /// On the card, or several at once: never hydra's.
    Other,
}

impl Mode {
    /// From `IFLA_XDP_ATTACHED`.
    fn of(attached: u8) -> Option<Self> {
        match attached {
            0 => None,
            1 => Some(Self::Native),
            2 => Some(Self::Generic),
            _ => Some(Self::Other),
        }
    }

    /// `XDP_FLAGS_DRV_MODE` and its like.
    pub const fn flag(self) -> u32 {
        match self {
            Self::Generic => 1 << 1,
            Self::Native => 1 << 2,
            Self::Other => 1 << 3,
        }
    }

    /// The word that operators see.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Native => "xdp-native",
            Self::Generic => "xdp-generic",
            Self::Other => "xdp",
        }
    }
}

/// What concerns XDP of one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The kernel's number of the program on it (0 where there are several), and how it sits there.
    pub program: Option<(u32, Mode)>,
    /// What it is a port of.
    pub master: Option<u32>,
    /// The interface that its frames come in on first (of a VLAN, macvlan …); it may be in another namespace.
    pub below: Option<u32>,
    /// It has what carries its VLAN's tag there.
    pub tagged: bool,
    /// It carries Ethernet frames.
    pub ethernet: bool,
}

/// The interfaces of this namespace by index.
pub fn interfaces() -> io::Result<BTreeMap<u32, Interface>> {
    let mut request = Request::new(GET_LINK, ACK | DUMP, &[0; INFO]);
    request.attribute(EXT_MASK, &SKIP_STATS.to_ne_bytes());
    Ok(request.send()?.iter().filter_map(|message| interface(message)).collect())
}

fn interface(message: &[u8]) -> Option<(u32, Interface)> {
    let index = word(message, 4)?;
    let mut found = Interface {
        program: None,
        master: None,
        below: None,
        tagged: false,
        ethernet: word(message, 0).is_some_and(|word| (word >> 16) as u16 == ETHERNET),
    };
    let mut elsewhere = false;
    for (kind, value) in attributes(message.get(INFO..)?) {
        match kind {
            // Of a veth the other end.
            LINK => found.below = word(value, 0).filter(|lower| *lower != 0),
            MASTER => found.master = word(value, 0).filter(|master| *master != 0),
            LINK_INFO => {
                let info = attributes(value);
                elsewhere |= info.contains(&(INFO_KIND, b"veth\0"));
                found.tagged = info.contains(&(INFO_KIND, b"vlan\0"));
            }
            LINK_NAMESPACE => elsewhere = true,
            XDP => found.program = program(value),
            _ => {}
        }
    }
    if elsewhere {
        found.below = None;
    }
    Some((index, found))
}

/// Whether the driver of an interface takes VLAN tags off frames, before XDP sees these (`rx-vlan-offload` of `ethtool -k`; where there is no
/// such setting it does not).
pub fn takes_tags_off(name: &str) -> bool {
    // `ETHTOOL_GFLAGS` and `ETH_FLAG_RXVLAN` of linux/ethtool.h.
    const GET_FLAGS: u32 = 0x25;
    const RX_VLAN: u32 = 1 << 8;
    const ETHTOOL: libc::c_ulong = 0x8946;
    let Ok(socket) = std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0)) else { return false };
    let mut value = [GET_FLAGS, 0];
    // SAFETY: all zero is a value of this plain struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    // SAFETY: the request, and the two words that it points to, live through the call; the kernel writes the second.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), ETHTOOL as _, &raw mut request) };
    done == 0 && value[1] & RX_VLAN != 0
}

fn program(value: &[u8]) -> Option<(u32, Mode)> {
    let (mut mode, mut program) = (None, 0);
    for (kind, value) in attributes(value) {
        match kind {
            XDP_ATTACHED => mode = Mode::of(*value.first()?),
            XDP_PROGRAM => program = word(value, 0)?,
            _ => {}
        }
    }
    mode.map(|mode| (program, mode))
}

#[cfg(test)]
mod tests {
    use super::super::rtnetlink::attribute;
    use super::*;

    fn message(kind: &[u8], more: &[(u16, &[u8])], xdp: &[(u16, &[u8])]) -> Vec<u8> {
        let mut nested = Vec::new();
        for (kind, value) in xdp {
            attribute(&mut nested, *kind, value);
        }
        let mut message = vec![0; INFO];
        message[2..4].copy_from_slice(&ETHERNET.to_ne_bytes());
        message[4..8].copy_from_slice(&7u32.to_ne_bytes());
        attribute(&mut message, 3, b"hya\0");
        for (kind, value) in more {
            attribute(&mut message, *kind, value);
        }
        let mut info = Vec::new();
        attribute(&mut info, INFO_KIND, kind);
        attribute(&mut message, LINK_INFO, &info);
        attribute(&mut message, XDP, &nested);
        message
    }

    #[test]
    fn an_interface_without_a_program_has_none() {
        let program = |xdp: &[(u16, &[u8])]| interface(&message(b"veth\0", &[], xdp)).unwrap().1.program;
        assert_eq!(program(&[(XDP_ATTACHED, &[0])]), None);
        let id = 42u32.to_ne_bytes();
        assert_eq!(program(&[(XDP_ATTACHED, &[2]), (XDP_PROGRAM, &id)]), Some((42, Mode::Generic)));
        assert_eq!(program(&[(XDP_ATTACHED, &[4])]), Some((0, Mode::Other)), "several");
        let whole = message(b"veth\0", &[], &[(XDP_ATTACHED, &[1]), (XDP_PROGRAM, &id)]);
        assert_eq!(interface(&whole).unwrap().1.program, Some((42, Mode::Native)));
        for length in 0..whole.len() {
            let _ = interface(&whole[..length]);
        }
    }

    #[test]
    fn what_lies_above_another_is_told_from_one_end_of_a_pair() {
        let five = 5u32.to_ne_bytes();
        let of = |kind, more: &[(u16, &[u8])]| interface(&message(kind, more, &[])).unwrap();
        let (index, veth) = of(b"veth\0", &[(LINK, &five), (MASTER, &five)]);
        assert_eq!((index, veth.below, veth.master, veth.ethernet), (7, None, Some(5), true));
        let vlan = of(b"vlan\0", &[(LINK, &five)]).1;
        assert_eq!((vlan.below, vlan.tagged), (Some(5), true));
        let macvlan = of(b"macvlan\0", &[(LINK, &five)]).1;
        assert_eq!((macvlan.below, macvlan.tagged), (Some(5), false));
        assert_eq!(of(b"dummy\0", &[]).1.below, None);
        let mut tunnel = message(b"wireguard\0", &[], &[]);
        tunnel[2..4].copy_from_slice(&65534u16.to_ne_bytes());
        assert!(!interface(&tunnel).unwrap().1.ethernet);
    }
}
