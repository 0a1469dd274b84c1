//! The console server: one task for each guest moves bytes between the guest's ring and
//! what the host keeps; administrators come and go beside it.

use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::pin::pin;

use futures_util::future::select;
use toolstack_console::{Console, Cursor, KEPT};
use xen_ring::{ByteRing, ByteRingLayout, SharedPages};

use crate::event::Port;
use crate::exec;
use crate::sync::Notify;

/// A guest's console. It outlives the guest's domain: over a reboot, watchers stay.
pub struct GuestConsole {
    state: RefCell<Console>,
    /// Output came, or the guest is gone for good.
    output: Notify,
    /// Something was typed.
    typed: Notify,
    /// The guest read what was typed, or is gone for good.
    room: Notify,
    gone: Cell<bool>,
}

impl GuestConsole {
    /// An empty console.
    pub fn new() -> Rc<Self> {
        Rc::new(Self {
            state: RefCell::new(Console::new()),
            output: Notify::new(),
            typed: Notify::new(),
            room: Notify::new(),
            gone: Cell::new(false),
        })
    }

    /// What is kept of the output.
    pub fn kept(&self) -> Vec<u8> {
        let state = self.state.borrow();
        let mut cursor = state.start();
        let mut bytes = vec![0; KEPT];
        let (count, _) = state.read(&mut cursor, &mut bytes);
        bytes.truncate(count);
        bytes
    }

    /// A watcher that sees what is printed from now on, or what is kept first.
    pub fn watch(self: &Rc<Self>, replay: bool) -> Watcher {
        let state = self.state.borrow();
        let cursor = if replay { state.start() } else { state.end() };
        Watcher {
            console: self.clone(),
            cursor,
        }
    }

    /// Types bytes; returns how many found room.
    pub fn type_in(&self, bytes: &[u8]) -> usize {
        let taken = self.state.borrow_mut().type_in(bytes);
        if taken > 0 {
            self.typed.notify_all();
        }
        taken
    }

    /// Waits until typing may find room again. `false`: the guest is gone.
    pub async fn wait_for_room(&self) -> bool {
        let seen = self.room.generation();
        if !self.gone.get() && self.state.borrow().room() == 0 {
            self.room.changed(seen).await;
        }
        !self.gone.get()
    }

    /// Writes a line of the host's own into the output: "guest rebooted" and the like.
    pub fn note(&self, line: &str) {
        self.print(line.as_bytes());
        self.print(b"\r\n");
    }

    /// Ends all watchers: the guest will not come back.
    pub fn end(&self) {
        self.gone.set(true);
        self.output.notify_all();
        self.room.notify_all();
    }

    fn print(&self, bytes: &[u8]) {
        self.state.borrow_mut().print(bytes);
        self.output.notify_all();
    }

    /// Serves a domain's console ring, until the guest breaks it. To be cancelled when the
    /// domain ends.
    pub async fn serve(self: Rc<Self>, page: SharedPages, port: Port, guest: xen_abi::DomId) {
        let mut ring = ByteRing::attach(page, ByteRingLayout::CONSOLE);
        let mut buffer = vec![0; ByteRingLayout::CONSOLE.from_guest.1];
        loop {
            let seen = self.typed.generation();
            match self.pump(&mut ring, &mut buffer) {
                Ok(moved) => {
                    if moved {
                        port.notify();
                        // A guest that prints without end shares the vCPU with the others.
                        exec::yield_now().await;
                        continue;
                    }
                }
                Err(error) => {
                    log::warn!("domain {guest}: console ring: {error}; not served any more");
                    return;
                }
            }
            select(pin!(port.wait()), pin!(self.typed.changed(seen))).await;
        }
    }

    /// Moves what can be moved now, both ways. Whether anything was.
    fn pump(&self, ring: &mut ByteRing, buffer: &mut [u8]) -> Result<bool, xen_ring::RingError> {
        let count = ring.read(buffer)?;
        if count > 0 {
            self.print(&buffer[..count]);
        }
        let mut state = self.state.borrow_mut();
        let written = ring.write(state.typed())?;
        state.typed_taken(written);
        drop(state);
        if written > 0 {
            self.room.notify_all();
        }
        Ok(count > 0 || written > 0)
    }
}

/// An administrator's view of a console.
pub struct Watcher {
    console: Rc<GuestConsole>,
    cursor: Cursor,
}

impl Watcher {
    /// The next bytes of output, as many as are there; 0: the guest is gone. May be dropped
    /// and called anew.
    pub async fn read(&mut self, to: &mut [u8]) -> usize {
        loop {
            let seen = self.console.output.generation();
            // What a slow watcher lost is not worth a word in the middle of its screen.
            let (count, _lost) = self.console.state.borrow().read(&mut self.cursor, to);
            if count > 0 || self.console.gone.get() {
                return count;
            }
            self.console.output.changed(seen).await;
        }
    }
}
