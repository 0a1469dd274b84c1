//! Watch events for Closer's own tasks, which share the server's vCPU.

use crate::path::Path;
use crate::watches::WatchId;
use alloc::collections::{BTreeSet, VecDeque};
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::cell::RefCell;
use core::task::{Context, Poll, Waker};

/// Events kept for one watch before they melt into one [`WatchEvent::rescan`].
const MAX_PER_WATCH: usize = 64;

/// Something below a watched path changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchEvent {
    /// What the watch was registered with.
    pub token: u64,
    /// The node that changed; the watched one itself right after registering.
    pub path: Path,
    /// So much happened that `path` is only the watched path: look at all below it.
    pub rescan: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Queue {
    events: VecDeque<(WatchId, WatchEvent)>,
    /// What waits, so that the same event waits once.
    waiting: BTreeSet<(WatchId, Path)>,
    waker: Option<Waker>,
    /// Watches whose queue is gone, for the server to forget.
    graveyard: Weak<RefCell<Vec<WatchId>>>,
    watches: BTreeSet<WatchId>,
}

impl Drop for Queue {
    fn drop(&mut self) {
        if let Some(graveyard) = self.graveyard.upgrade() {
            graveyard.borrow_mut().extend(&self.watches);
        }
    }
}

/// Where a task receives the events of its watches. Dropping it ends them.
///
/// ```
/// use toolstack_xenstore::{EventQueue, Server};
/// let mut server = Server::new(Default::default());
/// let events = EventQueue::new();
/// server.watch(&events, "/local/domain/3/device", 7).unwrap();
/// assert_eq!(events.try_next().unwrap().token, 7); // fires once at the start
/// server.write("/local/domain/3/device/vbd/51712/state", b"3").unwrap();
/// let event = events.try_next().unwrap();
/// assert_eq!(event.path.as_str(), "/local/domain/3/device/vbd/51712/state");
/// ```
#[derive(Debug, Default)]
pub struct EventQueue(Rc<RefCell<Queue>>);

impl EventQueue {
    /// An empty queue with no watches.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next event, if there is one.
    pub fn try_next(&self) -> Option<WatchEvent> {
        let mut queue = self.0.borrow_mut();
        let (id, event) = queue.events.pop_front()?;
        queue.waiting.remove(&(id, event.path.clone()));
        Some(event)
    }

    /// The next event; registers the waker while there is none. One task at a time.
    pub fn poll_next(&self, cx: &mut Context<'_>) -> Poll<WatchEvent> {
        if let Some(event) = self.try_next() {
            return Poll::Ready(event);
        }
        self.0.borrow_mut().waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Waits for the next event.
    pub async fn next(&self) -> WatchEvent {
        core::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    pub(crate) fn handle(&self) -> Weak<RefCell<Queue>> {
        Rc::downgrade(&self.0)
    }

    /// Ties a new watch's life to this queue's.
    pub(crate) fn adopt(&self, id: WatchId, graveyard: &Rc<RefCell<Vec<WatchId>>>) {
        let mut queue = self.0.borrow_mut();
        queue.graveyard = Rc::downgrade(graveyard);
        queue.watches.insert(id);
    }

    pub(crate) fn watches(&self) -> Vec<WatchId> {
        self.0.borrow().watches.iter().copied().collect()
    }

    /// Forgets a watch and the events it still has waiting.
    pub(crate) fn abandon(&self, id: WatchId) {
        let mut queue = self.0.borrow_mut();
        queue.watches.remove(&id);
        queue.forget_events(id);
    }
}

impl Queue {
    fn forget_events(&mut self, id: WatchId) {
        self.events.retain(|(other, _)| *other != id);
        self.waiting.retain(|(other, _)| *other != id);
    }

    /// Queues an event, unless the very same one waits already.
    pub(crate) fn push(&mut self, id: WatchId, token: u64, watched: &Path, path: &Path) {
        let rescan = self
            .events
            .iter()
            .any(|(other, event)| *other == id && event.rescan);
        if rescan || !self.waiting.insert((id, path.clone())) {
            return;
        }
        let event = WatchEvent {
            token,
            path: path.clone(),
            rescan: false,
        };
        self.events.push_back((id, event));
        let mine = (id, Path::root())..(WatchId(id.0 + 1), Path::root());
        if self.waiting.range(mine).count() > MAX_PER_WATCH {
            self.forget_events(id);
            self.waiting.insert((id, watched.clone()));
            let event = WatchEvent {
                token,
                path: watched.clone(),
                rescan: true,
            };
            self.events.push_back((id, event));
        }
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}
