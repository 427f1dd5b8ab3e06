//! Datagrams for a group, or for all of a network: who listens, who sends, and whether it is heard.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

/// A socket that hears a group, or what is sent to all, on one interface.
pub fn joined(group: IpAddr, at: Ipv4Addr, index: u32) -> io::Result<UdpSocket> {
    let any: IpAddr =
        if group.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    match group {
        IpAddr::V4(v4) if v4.is_multicast() => socket.join_multicast_v4(&v4, &at)?,
        IpAddr::V4(_) => {}
        IpAddr::V6(v6) => socket.join_multicast_v6(&v6, index)?,
    }
    Ok(socket)
}

/// Whether these words arrive; what others say is not waited for any longer.
pub fn hears(socket: &UdpSocket, words: &[u8], patience: Duration) -> bool {
    if socket.set_read_timeout(Some(patience)).is_err() {
        return false;
    }
    let (begun, mut buffer) = (Instant::now(), [0; 1_024]);
    while begun.elapsed() < patience {
        match socket.recv(&mut buffer) {
            Ok(length) if buffer[..length] == *words => return true,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
    false
}

/// Sends three times to a group by one interface, which has this number and the address `by`, from one of the place's addresses.
pub fn send(source: IpAddr, by: Ipv4Addr, index: u32, group: SocketAddr, words: &[u8]) -> io::Result<()> {
    let link_local = matches!(source, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let own = match source {
        IpAddr::V6(v6) => SocketAddr::V6(SocketAddrV6::new(v6, 0, 0, if link_local { index } else { 0 })),
        IpAddr::V4(_) => SocketAddr::new(source, 0),
    };
    let socket = UdpSocket::bind(own)?;
    socket.set_broadcast(true)?;
    let to = match group {
        SocketAddr::V6(v6) => SocketAddr::V6(SocketAddrV6::new(*v6.ip(), v6.port(), 0, index)),
        SocketAddr::V4(_) => group,
    };
    if group.is_ipv4() {
        let device = libc::in_addr { s_addr: u32::from(by).to_be() };
        let size = size_of::<libc::in_addr>() as libc::socklen_t;
        let (fd, level, option) = (socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_MULTICAST_IF);
        // SAFETY: pointer and size are those of one struct that outlives the call.
        if unsafe { libc::setsockopt(fd, level, option, (&raw const device).cast(), size) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    for _ in 0..3 {
        socket.send_to(words, to)?;
    }
    Ok(())
}

/// Routes what a machine sends to a group from one interface on to another, in this namespace, until it is dropped (`linux/mroute.h`).
pub fn routed(origin: Ipv4Addr, group: Ipv4Addr, from: u32, to: u32) -> io::Result<OwnedFd> {
    const INIT: i32 = 200;
    const ADD_VIF: i32 = 202;
    const ADD_MFC: i32 = 204;
    // SAFETY: numbers alone; the descriptor is nobody else's.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_IGMP);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    let set = |option: i32, value: &[u8]| {
        let length = value.len() as libc::socklen_t;
        // SAFETY: pointer and length are those of bytes that outlive the call.
        let done = unsafe {
            libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, option, value.as_ptr().cast(), length)
        };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    set(INIT, &1_i32.to_ne_bytes())?;
    for (number, index) in [(0_u16, from), (1, to)] {
        // `struct vifctl`: number, VIFF_USE_IFINDEX, the least TTL, no limit, the interface, no tunnel.
        let mut interface = number.to_ne_bytes().to_vec();
        interface.extend([8, 1, 0, 0, 0, 0]);
        interface.extend(index.to_ne_bytes());
        interface.extend([0; 4]);
        set(ADD_VIF, &interface)?;
    }
    // `struct mfcctl`: origin, group, where it comes in, the least TTL by which it goes out at each of 32, and what the kernel counts.
    let mut route = [origin.octets(), group.octets()].concat();
    route.extend(0_u16.to_ne_bytes());
    let mut least = [0_u8; 32];
    least[1] = 1;
    route.extend(least);
    route.extend([0; 2 + 16]);
    set(ADD_MFC, &route)?;
    Ok(socket)
}
