//! What only user space needs: `aya::Pod` for every row, and conversions with `std::net`. The only `unsafe` of this crate.

use core::net::IpAddr;

use crate::address::{Address, Mac};
use crate::event::{Event, EventWindow};
use crate::flow::{Flow, FlowKey};
use crate::id::{Container, Identity, Tier};
use crate::tables::{
    BucketKey, Cell, Cgroup, CgroupKey, Count, Decision, DropKey, Endpoint, Fragment, FragmentKey, Head,
    IdentityRow, Interval, Limit, Link, PrefixData, PrefixRow, Publish, PublishKey, RuleSet, Sweep,
};

macro_rules! pod {
    ($($row:ty),* $(,)?) => {
        $(
            // SAFETY: `repr(C)` or `repr(transparent)` without padding (zerocopy's `IntoBytes` checks that at compile time),
            // and every bit pattern is a value (`FromBytes`).
            unsafe impl aya::Pod for $row {}
        )*
    };
}

pod!(
    Address,
    Mac,
    BucketKey,
    Cell,
    Cgroup,
    CgroupKey,
    Count,
    Decision,
    DropKey,
    Endpoint,
    Event,
    EventWindow,
    Flow,
    FlowKey,
    Fragment,
    FragmentKey,
    Head,
    IdentityRow,
    Interval,
    Limit,
    Link,
    PrefixData,
    PrefixRow,
    Publish,
    PublishKey,
    RuleSet,
    Sweep,
);

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(a) => Self::v4(a.octets()),
            IpAddr::V6(a) => Self::v6(a.octets()),
        }
    }
}

impl From<Address> for IpAddr {
    fn from(a: Address) -> Self {
        let o = a.octets();
        if a.is_v4() { Self::from([o[12], o[13], o[14], o[15]]) } else { Self::from(o) }
    }
}

impl core::fmt::Display for Address {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

impl core::fmt::Display for Mac {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let m = self.0;
        write!(f, "{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", m[0], m[1], m[2], m[3], m[4], m[5])
    }
}

impl serde::Serialize for Mac {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

macro_rules! number {
    ($($id:ty),*) => {
        $(
            impl serde::Serialize for $id {
                fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                    self.0.serialize(s)
                }
            }
        )*
    };
}

number!(Identity, Tier, Container);
