//! Which administrators are served, when more want to be than there is room for.

use alloc::vec::Vec;

/// Connections of administrators; `I` names one. Times are in one unit, of a clock that
/// does not go back.
///
/// When all places are taken, who has been idle longest makes room for the next, if that is
/// long enough: consoles that somebody forgot, or a client that was stopped, must not keep
/// an administrator from the host.
#[derive(Debug)]
pub struct Clients<I> {
    places: usize,
    idle: u64,
    /// The oldest first, each with the time since which it has been idle.
    all: Vec<(I, Option<u64>)>,
}

/// Nobody has been idle for long enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl<I: PartialEq> Clients<I> {
    /// Nobody yet, and `places` for them; who has done nothing for `idle` has to make room.
    #[must_use]
    pub fn new(places: usize, idle: u64) -> Self {
        Clients {
            places,
            idle,
            all: Vec::with_capacity(places),
        }
    }

    /// Admits `id`. Returns who has to go for it.
    ///
    /// # Errors
    /// There is no room: `id` is not admitted.
    pub fn admit(&mut self, id: I, now: u64) -> Result<Option<I>, Full> {
        let mut gone = None;
        if self.all.len() >= self.places {
            let idle = self.all.iter().enumerate();
            let idle = idle.filter_map(|(index, (_, since))| since.map(|since| (since, index)));
            let (since, index) = idle.min().ok_or(Full)?;
            if now.saturating_sub(since) < self.idle {
                return Err(Full);
            }
            gone = Some(self.all.remove(index).0);
        }
        self.all.push((id, Some(now)));
        Ok(gone)
    }

    /// `id` is idle from now on, or (`None`) waits for us.
    pub fn set_idle(&mut self, id: &I, since: Option<u64>) {
        if let Some((_, at)) = self.all.iter_mut().find(|(other, _)| other == id) {
            *at = since;
        }
    }

    /// `id` is gone.
    pub fn remove(&mut self, id: &I) {
        self.all.retain(|(other, _)| other != id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_been_idle_longest_makes_room() {
        let mut clients = Clients::new(3, 60);
        for (id, now) in [('a', 0), ('b', 1), ('c', 2)] {
            assert_eq!(clients.admit(id, now), Ok(None));
        }
        clients.set_idle(&'a', Some(3));
        assert_eq!(clients.admit('d', 60), Err(Full), "59 idle");
        assert_eq!(clients.admit('d', 61), Ok(Some('b')));
        assert_eq!(clients.admit('e', 61), Err(Full), "59 idle");
        assert_eq!(clients.admit('e', 62), Ok(Some('c')));
        clients.remove(&'d');
        // It went already: nothing is counted twice.
        clients.remove(&'b');
        assert_eq!(clients.admit('f', 62), Ok(None));
        // Whom we keep waiting is not idle.
        clients.set_idle(&'a', None);
        assert_eq!(clients.admit('g', 121), Err(Full), "59 idle");
        assert_eq!(clients.admit('g', 122), Ok(Some('e')));
        for id in ['f', 'g'] {
            clients.set_idle(&id, None);
        }
        assert_eq!(clients.admit('h', 1000), Err(Full));
        clients.set_idle(&'a', Some(1000));
        assert_eq!(clients.admit('h', 1060), Ok(Some('a')));
    }

    #[test]
    fn all_places_can_be_won_back_from_those_who_forgot_them() {
        let mut clients = Clients::new(12, 60);
        for id in 0..12 {
            assert_eq!(clients.admit(id, 0), Ok(None));
        }
        for id in 12..24 {
            assert_eq!(clients.admit(id, 60), Ok(Some(id - 12)));
        }
        assert_eq!(clients.admit(24, 119), Err(Full));
    }
}
