//! Ports for servers that bind them by themselves, a moment after they were chosen.

use std::net::{TcpListener, UdpSocket};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU32, Ordering};

/// A TCP port of 127.0.0.1 that no outgoing connection can take and that no other holder of a `Port` has, in whatever process, as long
/// as this lives.
pub(crate) struct Port {
    pub(crate) number: u16,
    /// The UDP port of the same number says that it is taken. It is not passed on to programs that are started, and ends with this process.
    _claim: UdpSocket,
}

impl Port {
    /// One that nothing listens at.
    pub(crate) fn claim() -> Port {
        static TRIES: AtomicU32 = AtomicU32::new(0);
        let range = out_of_the_way(outgoing());
        let (first, count) = (u32::from(*range.start()), range.len() as u32);
        // Processes begin at different places, so that they seldom ask for one another's.
        let begin = std::process::id().wrapping_mul(61);
        for _ in 0..count {
            let next = begin.wrapping_add(TRIES.fetch_add(1, Ordering::Relaxed));
            let number = (first + next % count) as u16;
            let Ok(claim) = UdpSocket::bind(("127.0.0.1", number)) else { continue };
            // Somebody who knows nothing of claims may listen there.
            if TcpListener::bind(("127.0.0.1", number)).is_ok() {
                return Port { number, _claim: claim };
            }
        }
        panic!("no port of {range:?} is free");
    }
}

/// The ports that the kernel gives to outgoing connections.
pub(crate) fn outgoing() -> RangeInclusive<u16> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut ends = text.split_whitespace().map_while(|word| word.parse().ok());
    // What Linux has where nobody set it.
    ends.next().unwrap_or(32768)..=ends.next().unwrap_or(60999)
}

/// The larger of what lies below and above them, without the ports that need a privilege.
fn out_of_the_way(outgoing: RangeInclusive<u16>) -> RangeInclusive<u16> {
    let below = 1024..=outgoing.start().saturating_sub(1);
    let above = outgoing.end().saturating_add(1).max(1024)..=u16::MAX;
    let out = if below.len() >= above.len() { below } else { above };
    assert!(out.len() > 100, "outgoing connections take nearly every port ({outgoing:?})");
    out
}
