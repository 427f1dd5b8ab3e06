//! The kernel's lists of links and addresses, of this namespace and of those behind its veths, and the watch that says when to
//! list again. Nothing here interprets; `assemble` does.

#![expect(clippy::wildcard_enum_match_arm, reason = "what the kernel may tell of a link is an open list")]

use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use futures_util::StreamExt;
use hydra_common::address::Mac;
use ipnet::IpNet;
use rtnetlink::packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{
    AfSpecInet, AfSpecUnspec, InfoKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::nsid::{NsidAttribute, NsidMessage};
use rtnetlink::sys::{AsyncSocket as _, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};
use rtnetlink::{Handle, MulticastGroup};
use tokio::task::JoinHandle;

use super::snapshot::LinkType;

/// How often a list that changed while it was read is read again before it is given up.
const ATTEMPTS: u32 = 10;
/// A list takes microseconds; only a broken socket takes this long.
const PATIENCE: Duration = Duration::from_secs(5);
/// Messages that the watch forgets at once; any that are left make it wake again.
const BURST: u32 = 4096;
/// Bytes that the watch reads of a message: what does not fit is cut off, and of no interest.
const CUT: usize = 64;
/// Bit of the header's flags: the list changed while it was read (`NLM_F_DUMP_INTR` of `linux/netlink.h`).
const INTERRUPTED: u16 = 0x10;

/// Why the kernel did not tell.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket.
    #[error("netlink: the socket could not be {what}: {source}")]
    Socket {
        /// `opened`, `bound` …
        what: &'static str,
        /// The system's word.
        source: io::Error,
    },
    /// The kernel refused.
    #[error("netlink: {what} could not be read: {source}")]
    Refused {
        /// What was asked for.
        what: String,
        /// The kernel's word.
        source: io::Error,
    },
    /// It changed faster than it could be read.
    #[error("netlink: {what} changed each of {ATTEMPTS} times while being read")]
    Restless {
        /// What was asked for.
        what: String,
    },
    /// No answer: the connection is of no use any more.
    #[error("netlink: no answer to the request for {what}")]
    Silent {
        /// What was asked for.
        what: String,
    },
}

impl NetlinkError {
    /// The connection has to be opened again.
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Silent { .. } | Self::Socket { .. })
    }
}

/// One interface as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its index in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What kind.
    pub kind: LinkType,
    /// Its MAC, zero where it has none of six bytes.
    pub mac: Mac,
    /// In bytes.
    pub mtu: u32,
    /// The bridge (or bond …) that it is a port of.
    pub master: Option<u32>,
    /// Administratively up.
    pub up: bool,
    /// Index of a veth's other end, in that end's namespace.
    pub peer: Option<u32>,
    /// This namespace's number for the namespace of the other end, if that is another.
    pub peer_nsid: Option<i32>,
    /// Packets of 127.0.0.0/8 are routed on it (`route_localnet`).
    pub localnet: bool,
}

/// An address on the interface of that index, with the length of its prefix.
pub type OnLink = (u32, IpNet);

/// A connection for requests, in the namespace of the thread that opened it.
#[derive(Debug)]
pub struct Kernel {
    handle: Handle,
    task: JoinHandle<()>,
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Kernel {
    /// Opens a socket in the calling thread's namespace. Must be called inside a tokio runtime.
    pub fn open() -> Result<Self, NetlinkError> {
        let (mut connection, handle, _) =
            rtnetlink::new_connection().map_err(|source| NetlinkError::Socket { what: "opened", source })?;
        // Without strict checking the kernel ignores the namespace in a request for addresses and answers with our own.
        connection
            .socket_mut()
            .socket_mut()
            .set_netlink_get_strict_chk(true)
            .map_err(|source| NetlinkError::Socket { what: "set to strict checking", source })?;
        // The last message of a list carries its error, and whether the list was disturbed.
        connection.set_forward_done(true);
        Ok(Self { handle, task: tokio::spawn(connection) })
    }

    /// The handle for changes, on the same socket.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Every link of this namespace, or of the one that has that number here.
    pub async fn links(&self, nsid: Option<i32>) -> Result<Vec<Interface>, NetlinkError> {
        let mut request = LinkMessage::default();
        request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        request.attributes.extend(nsid.map(LinkAttribute::IfNetnsId));
        let what = format!("the list of links{}", of(nsid));
        let mut links = Vec::new();
        for message in self.list(&what, RouteNetlinkMessage::GetLink(request)).await? {
            if let RouteNetlinkMessage::NewLink(link) = message {
                links.push(interface(link));
            }
        }
        links.sort_unstable_by_key(|l| l.index);
        links.dedup_by_key(|l| l.index);
        Ok(links)
    }

    /// Every address of this namespace, or of the one that has that number here, both families.
    pub async fn addresses(&self, nsid: Option<i32>) -> Result<Vec<OnLink>, NetlinkError> {
        let mut request = AddressMessage::default();
        request.attributes.extend(nsid.map(AddressAttribute::TargetNetNsId));
        let what = format!("the list of addresses{}", of(nsid));
        let mut addresses = Vec::new();
        for message in self.list(&what, RouteNetlinkMessage::GetAddress(request)).await? {
            if let RouteNetlinkMessage::NewAddress(address) = message {
                addresses.extend(on_link(&address));
            }
        }
        Ok(addresses)
    }

    /// The number that this namespace has for the namespace of a file; none if it has had nothing to do with it.
    pub async fn nsid(&self, namespace: BorrowedFd<'_>) -> Result<Option<i32>, NetlinkError> {
        let mut request = NsidMessage::default();
        request.attributes.push(NsidAttribute::Fd(namespace.as_raw_fd().cast_unsigned()));
        let mut message = NetlinkMessage::from(RouteNetlinkMessage::GetNsId(request));
        message.header.flags = NLM_F_REQUEST;
        for answer in self.answers("a namespace's number", message).await?.unwrap_or_default() {
            if let RouteNetlinkMessage::NewNsId(found) = answer {
                return Ok(found.attributes.iter().find_map(|a| match a {
                    NsidAttribute::Id(id) if *id >= 0 => Some(*id),
                    _ => None,
                }));
            }
        }
        Ok(None)
    }

    /// A whole, undisturbed list.
    pub(super) async fn list(
        &self,
        what: &str,
        request: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        for _ in 0..ATTEMPTS {
            let mut message = NetlinkMessage::from(request.clone());
            message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
            if let Some(list) = self.answers(what, message).await? {
                return Ok(list);
            }
        }
        Err(NetlinkError::Restless { what: what.to_owned() })
    }

    /// All answers to one request; `None` if the list changed or messages were lost while it was read.
    async fn answers(
        &self,
        what: &str,
        message: NetlinkMessage<RouteNetlinkMessage>,
    ) -> Result<Option<Vec<RouteNetlinkMessage>>, NetlinkError> {
        tokio::time::timeout(PATIENCE, self.answers_or_hang(what, message))
            .await
            .unwrap_or_else(|_| Err(NetlinkError::Silent { what: what.to_owned() }))
    }

    async fn answers_or_hang(
        &self,
        what: &str,
        message: NetlinkMessage<RouteNetlinkMessage>,
    ) -> Result<Option<Vec<RouteNetlinkMessage>>, NetlinkError> {
        let silent = || NetlinkError::Silent { what: what.to_owned() };
        let refused = |code: i32| NetlinkError::Refused {
            what: what.to_owned(),
            source: io::Error::from_raw_os_error(code.abs()),
        };
        let is_list = message.header.flags & NLM_F_DUMP != 0;
        let mut answers = self.handle.clone().request(message).map_err(|_| silent())?;
        let (mut list, mut whole, mut ended) = (Vec::new(), true, !is_list);
        while let Some(answer) = answers.next().await {
            whole &= answer.header.flags & INTERRUPTED == 0;
            match answer.payload {
                NetlinkPayload::InnerMessage(inner) => list.push(inner),
                NetlinkPayload::Error(error) => match error.code {
                    Some(code) => return Err(refused(code.get())),
                    None => ended = true,
                },
                NetlinkPayload::Done(done) if done.code < 0 => return Err(refused(done.code)),
                NetlinkPayload::Done(_) => ended = true,
                NetlinkPayload::Overrun(_) => whole = false,
                _ => {}
            }
        }
        // The stream also ends when the connection's task does.
        if !ended || self.task.is_finished() {
            return Err(silent());
        }
        Ok(whole.then_some(list))
    }
}

fn of(nsid: Option<i32>) -> String {
    nsid.map_or_else(String::new, |id| format!(" of namespace {id}"))
}

fn interface(link: LinkMessage) -> Interface {
    let mut found = Interface {
        index: link.header.index,
        name: String::new(),
        kind: LinkType::Other,
        mac: Mac::default(),
        mtu: 0,
        master: None,
        up: link.header.flags.contains(LinkFlags::Up),
        peer: None,
        peer_nsid: None,
        localnet: false,
    };
    if link.header.flags.contains(LinkFlags::Loopback) {
        found.kind = LinkType::Loopback;
    }
    for attribute in link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name = name,
            LinkAttribute::Address(bytes) => {
                if let Ok(mac) = <[u8; 6]>::try_from(bytes.as_slice()) {
                    found.mac = Mac(mac);
                }
            }
            LinkAttribute::Mtu(mtu) => found.mtu = mtu,
            LinkAttribute::Controller(index) => found.master = (index != 0).then_some(index),
            LinkAttribute::Link(index) => found.peer = (index != 0).then_some(index),
            LinkAttribute::LinkNetNsId(id) => found.peer_nsid = (id >= 0).then_some(id),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Kind(kind) = info {
                        if kind == InfoKind::Bridge {
                            found.kind = LinkType::Bridge;
                        } else if kind == InfoKind::Veth {
                            found.kind = LinkType::Veth;
                        }
                    }
                }
            }
            LinkAttribute::AfSpecUnspec(families) => {
                let v4 = families.iter().filter_map(|f| match f {
                    AfSpecUnspec::Inet(settings) => Some(settings),
                    _ => None,
                });
                found.localnet = v4
                    .flatten()
                    .any(|s| matches!(s, AfSpecInet::DevConf(settings) if settings.route_localnet != 0));
            }
            _ => {}
        }
    }
    found
}

/// The interface's own address: `IFA_LOCAL` where there is one (`IFA_ADDRESS` is the far end's then, as on point-to-point links).
fn on_link(message: &AddressMessage) -> Option<OnLink> {
    let (mut local, mut address): (Option<IpAddr>, Option<IpAddr>) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            _ => {}
        }
    }
    let net = IpNet::new(local.or(address)?, message.header.prefix_len).ok()?;
    Some((message.header.index, net))
}

/// Wakes when a link or an address changed, here or in a namespace that this one has a number for. What changed is not read:
/// the kernel loses messages under load, so only a new list tells.
pub struct Watch {
    socket: TokioSocket,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

impl Watch {
    /// Opens its own socket in the calling thread's namespace (a socket is not told of changes that it made itself). The second
    /// value is what it can not see, if anything. Must be called inside a tokio runtime.
    pub fn open() -> Result<(Self, Option<String>), NetlinkError> {
        let failed = |what: &'static str| move |source: io::Error| NetlinkError::Socket { what, source };
        let mut socket = TokioSocket::new(NETLINK_ROUTE).map_err(failed("opened"))?;
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let mask = groups.iter().fold(0, |mask, group| mask | 1 << (*group as u32 - 1));
        socket.socket_mut().bind(&SocketAddr::new(0, mask)).map_err(failed("bound"))?;
        let blind = socket.socket_ref().set_listen_all_namespaces(true).err().map(|error| {
            format!(
                "changes inside containers' namespaces are only seen at the next regular look (that takes `CAP_NET_BROADCAST`): \
                 {error}"
            )
        });
        Ok((Self { socket }, blind))
    }

    /// Forgets what was seen so far.
    pub fn drain(&self) {
        let mut buffer = Vec::with_capacity(CUT);
        for _ in 0..BURST {
            buffer.clear();
            match self.socket.socket_ref().recv(&mut buffer, 0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Lost messages are an error of one call, and what they said is being forgotten.
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// Returns when something changed. Loses nothing when dropped before it is done.
    pub async fn changed(&self) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(CUT);
        match poll_fn(|cx| self.socket.poll_recv(cx, &mut buffer)).await {
            Err(error) if error.raw_os_error() != Some(libc::ENOBUFS) => Err(error),
            Ok(()) | Err(_) => {
                self.drain();
                Ok(())
            }
        }
    }
}
