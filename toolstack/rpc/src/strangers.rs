//! Who may be in the middle of a handshake, when more want to than there is room for.

use alloc::collections::VecDeque;

/// Connections that have not proved anything yet: `I` names one, `A` is where it comes from.
///
/// The newest is always admitted. When there are too many, the address that has most of
/// them loses its oldest; so an address with one stranger keeps it as long as the strangers
/// come from no more addresses, its own included, than there are places. How often others
/// connect, and what they send, changes nothing about that.
#[derive(Debug)]
pub struct Strangers<I, A> {
    places: usize,
    /// The oldest first.
    all: VecDeque<(I, A)>,
}

impl<I: PartialEq, A: PartialEq> Strangers<I, A> {
    /// Nobody yet, and `places` for them.
    #[must_use]
    pub fn new(places: usize) -> Self {
        Strangers {
            places,
            all: VecDeque::with_capacity(places + 1),
        }
    }

    /// Admits `id`. Returns who has to go for it.
    #[must_use]
    pub fn admit(&mut self, id: I, from: A) -> Option<I> {
        self.all.push_back((id, from));
        if self.all.len() <= self.places {
            return None;
        }
        let oldest = oldest_of_most(self.all.iter().map(|(_, from)| from))?;
        self.all.remove(oldest).map(|(id, _)| id)
    }

    /// `id` is a stranger no longer, or gone.
    pub fn remove(&mut self, id: &I) {
        self.all.retain(|(other, _)| other != id);
    }
}

/// Which one has to go of those that come `from` there, the oldest first: the oldest of the
/// address that has most of them. `None`: there is none.
pub fn oldest_of_most<A: PartialEq>(from: impl Iterator<Item = A> + Clone) -> Option<usize> {
    let count = |address: &A| from.clone().filter(|other| other == address).count();
    let most = from.clone().map(|address| count(&address)).max()?;
    from.clone().position(|address| count(&address) == most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_of_one_address_makes_room_for_the_next() {
        let mut strangers = Strangers::new(2);
        assert_eq!(strangers.admit(1, 'a'), None);
        assert_eq!(strangers.admit(2, 'a'), None);
        assert_eq!(strangers.admit(3, 'a'), Some(1));
        strangers.remove(&2);
        assert_eq!(strangers.admit(4, 'a'), None);
        assert_eq!(strangers.admit(5, 'a'), Some(3));
    }

    #[test]
    fn a_flood_from_all_addresses_but_one_does_not_push_that_one_out() {
        const PLACES: usize = 8;
        for attackers in 1..PLACES {
            let mut strangers = Strangers::new(PLACES);
            // Full before the honest one comes.
            for id in 0..100 {
                assert_ne!(strangers.admit(id, id % attackers), Some(id));
            }
            let honest = usize::MAX;
            assert_ne!(strangers.admit(honest, honest), Some(honest));
            for id in 100..10_000 {
                let gone = strangers.admit(id, id % attackers);
                assert!(gone.is_some(), "places are used");
                assert_ne!(gone, Some(honest), "{attackers} addresses");
                assert_ne!(gone, Some(id), "the newest is admitted");
            }
        }
    }

    #[test]
    fn from_as_many_addresses_as_there_are_places_the_oldest_goes() {
        let mut strangers = Strangers::new(8);
        for id in 0..8 {
            assert_eq!(strangers.admit(id, id), None);
        }
        assert_eq!(strangers.admit(8, 8), Some(0));
    }
}
