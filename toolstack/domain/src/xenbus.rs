//! The state machine of a device's backend, as a table.
//!
//! `io/xenbus.h`: each end writes its state into its own directory and watches the
//! other's. The frontend is the guest's: it may write any state at any time, in any
//! order, so every pair has an answer, and none of them trusts that an earlier step was
//! taken.

/// `XenbusState` of `io/xenbus.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// The node is not there, or holds no state.
    Unknown = 0,
    /// Made by the toolstack; nobody looked yet.
    Initialising = 1,
    /// A backend that says what it can, and waits for the frontend.
    InitWait = 2,
    /// A frontend that has its rings ready.
    Initialised = 3,
    /// In use.
    Connected = 4,
    /// Wants to end.
    Closing = 5,
    /// Has ended: nothing is mapped any more.
    Closed = 6,
    /// Frontend of a PCI device, which we have not.
    Reconfiguring = 7,
    /// Likewise.
    Reconfigured = 8,
}

impl State {
    /// What a `state` node holds; `None` for the whole value: the node is not there.
    pub fn parse(value: Option<&[u8]>) -> Self {
        match value {
            Some(b"1") => Self::Initialising,
            Some(b"2") => Self::InitWait,
            Some(b"3") => Self::Initialised,
            Some(b"4") => Self::Connected,
            Some(b"5") => Self::Closing,
            Some(b"6") => Self::Closed,
            Some(b"7") => Self::Reconfiguring,
            Some(b"8") => Self::Reconfigured,
            _ => Self::Unknown,
        }
    }

    /// What to write.
    pub fn text(self) -> &'static str {
        match self {
            Self::Unknown => "0",
            Self::Initialising => "1",
            Self::InitWait => "2",
            Self::Initialised => "3",
            Self::Connected => "4",
            Self::Closing => "5",
            Self::Closed => "6",
            Self::Reconfiguring => "7",
            Self::Reconfigured => "8",
        }
    }
}

/// What a backend does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing until something changes.
    Wait,
    /// Write what the device can, then `InitWait`.
    Advertise,
    /// Read the frontend's nodes, map its rings, start the task, then `Connected`. If
    /// what the frontend wrote makes no sense: `Closing`.
    Connect,
    /// Finish what is in flight, end every mapping, then `Closing`.
    Disconnect,
    /// The same, then `Closed`.
    Close,
    /// The same, then remove the device and its nodes.
    Remove,
}

/// The table. `online`: the toolstack wants the device (its `online` node is not "0");
/// a guest that reboots or hibernates closes it and connects again.
pub fn step(ours: State, theirs: State, online: bool) -> Step {
    use State::{
        Closed, Closing, Connected, InitWait, Initialised, Initialising, Reconfigured,
        Reconfiguring, Unknown,
    };
    match (ours, theirs) {
        // The frontend's directory is gone, with or without its domain.
        (_, Unknown) if !online => Step::Remove,
        (Initialising | InitWait, Unknown) => Step::Wait,
        (_, Unknown) => Step::Remove,

        // The toolstack takes the device away: as soon as the guest lets go of it.
        (_, Closed) if !online => Step::Remove,

        (_, Closed) if ours == Closed => Step::Wait,
        (_, Closed) => Step::Close,
        (Closing | Closed, Closing) => Step::Wait,
        (_, Closing) => Step::Disconnect,

        // We asked for the end; whatever the guest does but closing changes nothing.
        (_, _) if !online => match ours {
            Closing | Closed => Step::Wait,
            _ => Step::Disconnect,
        },

        // New, or back after an end.
        (Unknown | Initialising | Closed, Initialising) => Step::Advertise,
        (InitWait, Initialising) => Step::Wait,
        // It started anew without closing (a guest that crashed into kexec): first end
        // what it left.
        (_, Initialising) => Step::Close,

        // Some frontends write `Initialised`, others go straight to `Connected`.
        (InitWait, Initialised | Connected) => Step::Connect,
        // It did not wait for us to say what we can.
        (Unknown | Initialising, Initialised | Connected) => Step::Advertise,
        (Connected, Initialised | Connected) => Step::Wait,
        (_, Initialised | Connected) => Step::Wait,

        // No state of a frontend's.
        (Unknown | Initialising, InitWait) => Step::Advertise,
        (_, InitWait | Reconfiguring | Reconfigured) => Step::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [State; 9] = [
        State::Unknown,
        State::Initialising,
        State::InitWait,
        State::Initialised,
        State::Connected,
        State::Closing,
        State::Closed,
        State::Reconfiguring,
        State::Reconfigured,
    ];

    /// The state of a backend once it took a step.
    fn after(ours: State, step: Step) -> Option<State> {
        Some(match step {
            Step::Wait => ours,
            Step::Advertise => State::InitWait,
            Step::Connect => State::Connected,
            Step::Disconnect => State::Closing,
            Step::Close => State::Closed,
            Step::Remove => return None,
        })
    }

    /// Runs to rest with the other side unchanged.
    fn settle(mut ours: State, theirs: State, online: bool) -> Option<State> {
        for _ in 0..4 {
            let next = step(ours, theirs, online);
            if next == Step::Wait {
                return Some(ours);
            }
            ours = after(ours, next)?;
        }
        panic!("{ours:?} against {theirs:?} does not come to rest");
    }

    #[test]
    fn every_pair_comes_to_rest() {
        for ours in ALL {
            for theirs in ALL {
                for online in [true, false] {
                    settle(ours, theirs, online);
                }
            }
        }
    }

    #[test]
    fn a_stock_guest_connects_reboots_its_driver_and_connects_again() {
        let mut ours = State::Initialising;
        for (theirs, expected) in [
            (State::Initialising, State::InitWait),
            (State::Initialised, State::Connected),
            (State::Connected, State::Connected),
            (State::Closing, State::Closing),
            (State::Closed, State::Closed),
            (State::Initialising, State::InitWait),
            (State::Connected, State::Connected),
        ] {
            ours = settle(ours, theirs, true).unwrap();
            assert_eq!(ours, expected, "after {theirs:?}");
        }
    }

    #[test]
    fn removal_waits_for_the_guest_and_ends_when_it_closed_or_is_gone() {
        let ours = settle(State::Connected, State::Connected, false);
        assert_eq!(ours, Some(State::Closing));
        assert_eq!(settle(State::Closing, State::Connected, false), ours);
        assert_eq!(settle(State::Closing, State::Closed, false), None);
        assert_eq!(settle(State::Closing, State::Unknown, false), None);
        // The domain died with the device connected.
        assert_eq!(settle(State::Connected, State::Unknown, true), None);
    }

    #[test]
    fn no_order_of_states_connects_without_advertising_first() {
        for ours in ALL {
            for theirs in ALL {
                for online in [true, false] {
                    if step(ours, theirs, online) == Step::Connect {
                        assert_eq!((ours, online), (State::InitWait, true));
                    }
                }
            }
        }
    }

    #[test]
    fn a_device_in_use_is_never_advertised_anew_without_an_end() {
        for theirs in ALL {
            let next = step(State::Connected, theirs, true);
            assert!(
                !matches!(next, Step::Advertise | Step::Connect),
                "{theirs:?}"
            );
        }
    }

    #[test]
    fn odd_values_are_unknown() {
        for value in [
            None,
            Some(&b""[..]),
            Some(b"0"),
            Some(b"9"),
            Some(b"04"),
            Some(b"4 "),
        ] {
            assert_eq!(State::parse(value), State::Unknown);
        }
        for state in &ALL[1..] {
            assert_eq!(State::parse(Some(state.text().as_bytes())), *state);
        }
    }
}
