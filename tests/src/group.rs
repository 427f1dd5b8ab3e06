//! Datagrams for a group, or for all of a network: who listens, who sends, and whether it is heard.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd;
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
