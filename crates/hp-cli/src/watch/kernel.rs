//! What the kernel tells of itself: programs that start (the process connector) and changes of a folder
//! (inotify). Where it does not tell of programs, `/proc` is looked through at intervals.
//!
//! The connector (`linux/cn_proc.h`) is a netlink socket. It takes `CAP_NET_ADMIN`, and tells nothing to a process in
//! a pid or user namespace of its own, without an error; so its acknowledgement is waited for.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::net::netlink::{CONNECTOR, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

/// The pid namespace of the host (`PROC_PID_INIT_INO` in the kernel). From another one the numbers would be of no use.
const FIRST_NAMESPACE: &str = "pid:[4026531836]";
/// Longest wait for the connector's acknowledgement.
const ACKNOWLEDGED: Duration = Duration::from_millis(500);
/// `CN_IDX_PROC`, which is the multicast group too, and `CN_VAL_PROC`.
const PROCESSES: u32 = 1;
/// Size of `struct nlmsghdr`, and of `struct cn_msg` without its data.
const NETLINK_HEADER: usize = 16;
const CONNECTOR_HEADER: usize = 20;
/// Offset of the event's own data in `struct proc_event`.
const EVENT_DATA: usize = 16;
const EVENT_EXEC: u32 = 2;

/// Both sources.
pub(crate) struct Kernel {
    folder: OwnedFd,
    programs: Option<OwnedFd>,
}

/// What has been heard.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// Processes that have started a program.
    pub(crate) started: Vec<i32>,
    /// Some of that was lost.
    pub(crate) lost: bool,
    /// The folder has changed.
    pub(crate) folder: bool,
}

impl Kernel {
    /// Listens to changes of a folder.
    pub(crate) fn new(folder: &Path) -> io::Result<Kernel> {
        use inotify::{CreateFlags, WatchFlags};
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let changes = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::MOVED_FROM | WatchFlags::DELETE;
        inotify::add_watch(&fd, folder, changes | WatchFlags::ONLYDIR)?;
        Ok(Kernel { folder: fd, programs: None })
    }

    /// Listens to programs that start, too.
    pub(crate) fn hear_programs(&mut self) -> Result<(), String> {
        let link = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        if link != Path::new(FIRST_NAMESPACE) {
            return Err("the kernel tells of programs only outside pid namespaces".to_owned());
        }
        let fd = subscribe().map_err(|error| match error.raw_os_error() {
            Some(code) if code == rustix::io::Errno::PERM.raw_os_error() => "CAP_NET_ADMIN is missing".to_owned(),
            _ => format!("no process connector: {}", crate::text::io_reason(&error)),
        })?;
        let mut heard = Heard::default();
        let acknowledged = wait(&fd, ACKNOWLEDGED).and_then(|_| receive(&fd, &mut heard)).unwrap_or(false);
        if !acknowledged {
            return Err("the kernel tells of no programs here".to_owned());
        }
        self.programs = Some(fd);
        Ok(())
    }

    /// Waits until something is heard, or for a time.
    pub(crate) fn wait(&self, limit: Duration) -> io::Result<Heard> {
        let mut fds = vec![PollFd::new(&self.folder, PollFlags::IN)];
        fds.extend(self.programs.iter().map(|fd| PollFd::new(fd, PollFlags::IN)));
        match poll(&mut fds, Some(&time(limit))) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut heard = Heard::default();
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut changes = inotify::Reader::new(&self.folder, &mut buffer);
        while changes.next().is_ok() {
            heard.folder = true;
        }
        if let Some(fd) = &self.programs {
            while receive(fd, &mut heard)? {}
        }
        Ok(heard)
    }
}

fn time(limit: Duration) -> Timespec {
    Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: i64::from(limit.subsec_nanos()) }
}

fn wait(fd: &OwnedFd, limit: Duration) -> io::Result<bool> {
    Ok(poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&time(limit)))? > 0)
}

fn subscribe() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(CONNECTOR))?;
    bind(&fd, &SocketAddrNetlink::new(0, PROCESSES))?;
    // PROC_CN_MCAST_LISTEN, as NLMSG_DONE.
    let (listen, done) = (1u32, 3u16);
    let mut message = Vec::new();
    message.extend(((NETLINK_HEADER + CONNECTOR_HEADER + 4) as u32).to_ne_bytes());
    message.extend([done, 0].map(u16::to_ne_bytes).concat());
    message.extend([0, 0, PROCESSES, PROCESSES, 0, 0].map(u32::to_ne_bytes).concat());
    message.extend([4u16, 0].map(u16::to_ne_bytes).concat());
    message.extend(listen.to_ne_bytes());
    send(&fd, &message, SendFlags::empty())?;
    Ok(fd)
}

/// Reads one datagram; false if there is none.
fn receive(fd: &OwnedFd, heard: &mut Heard) -> io::Result<bool> {
    let mut buffer = [0u8; 4096];
    let len = match recv(fd, &mut buffer[..], RecvFlags::empty()) {
        Ok((len, _)) => len,
        Err(rustix::io::Errno::AGAIN) => return Ok(false),
        Err(rustix::io::Errno::NOBUFS) => {
            heard.lost = true;
            return Ok(true);
        }
        Err(error) => return Err(error.into()),
    };
    let event = buffer.get(NETLINK_HEADER + CONNECTOR_HEADER..len).unwrap_or_default();
    if number(event, 0) == Some(EVENT_EXEC) {
        heard.started.extend(number(event, EVENT_DATA + 4).map(u32::cast_signed));
    }
    Ok(true)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
