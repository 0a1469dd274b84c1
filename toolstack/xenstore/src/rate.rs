//! Write rate limit: a guest that writes all the time must not keep everybody else's
//! transactions from ever committing.
//!
//! As in xenstored: a write costs a credit, but only while somebody has a transaction
//! open. All domains together earn [`RATE`] credits a second, in equal shares; a
//! domain saves up to [`DOMAIN_BURST`], and what it can't save goes to a reserve that
//! domains in debt and new ones draw from. A domain in debt isn't read.
//!
//! Beyond xenstored's: a write that makes the open transactions keep more than [`BYTES`] of
//! old state costs as many times more, and what it costs more can only be earned or saved,
//! not drawn from the reserve. They are given up when that becomes too much, and must not
//! be whenever one guest likes.

/// Thousandths of a write.
pub(crate) type Credit = i64;

const WRITE: Credit = 1000;
/// Writes a second, of all domains.
const RATE: Credit = 200 * WRITE;
/// Bytes of old state that a write may leave behind for one credit: more than a change of a
/// device's node does.
const BYTES: u64 = 4096;
const DOMAIN_BURST: Credit = 10 * WRITE;
const RESERVE_MAX: Credit = 1000 * WRITE;
/// New domains may overdraw the reserve by five bursts.
const RESERVE_MIN: Credit = -5 * DOMAIN_BURST;

/// What all domains share.
#[derive(Debug, Default)]
pub(crate) struct RateLimit {
    reserve: Credit,
    domains: i64,
}

/// One domain's part.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    credit: Credit,
    /// What it owes for old states, to be earned before anything else; not below 0.
    owed: Credit,
    updated_ms: u64,
}

impl RateLimit {
    pub(crate) fn join(&mut self, now_ms: u64) -> Share {
        self.domains += 1;
        let gift = (self.reserve - RESERVE_MIN).clamp(0, DOMAIN_BURST);
        self.reserve -= gift;
        Share {
            credit: gift,
            owed: 0,
            updated_ms: now_ms,
        }
    }

    pub(crate) fn leave(&mut self, share: Share) {
        self.domains -= 1;
        self.give(share.credit.max(0));
    }

    fn give(&mut self, credit: Credit) {
        if self.reserve < RESERVE_MAX {
            self.reserve = (self.reserve + credit).min(RESERVE_MAX);
        }
    }

    /// Adds what was earned since the last time, for whole milliseconds.
    pub(crate) fn earn(&mut self, share: &mut Share, now_ms: u64) {
        // An hour fills every account there is.
        let elapsed = now_ms.saturating_sub(share.updated_ms).min(3_600_000);
        let elapsed = i64::try_from(elapsed).expect("bounded above");
        let earned = elapsed * RATE / (1000 * self.domains.max(1));
        if earned == 0 {
            return;
        }
        share.updated_ms = now_ms;
        let paid = earned.min(share.owed);
        share.owed -= paid;
        share.credit += earned - paid;
        if share.credit < 0 && self.reserve > 0 {
            let loan = self.reserve.min(-share.credit);
            self.reserve -= loan;
            share.credit += loan;
        }
        if share.credit > DOMAIN_BURST {
            self.give(share.credit - DOMAIN_BURST);
            share.credit = DOMAIN_BURST;
        }
    }

    pub(crate) fn pay(&mut self, share: &mut Share, copied: u64, now_ms: u64) {
        self.earn(share, now_ms);
        let all = i64::try_from(copied.saturating_mul(WRITE.unsigned_abs()) / BYTES);
        let more = all.map_or(i64::MAX, |all| (all - WRITE).max(0));
        let saved = more.min(share.credit.max(0));
        share.credit -= saved + WRITE;
        share.owed = share.owed.saturating_add(more - saved);
        if share.credit < 0 && self.reserve > 0 {
            let loan = self.reserve.min(-share.credit);
            self.reserve -= loan;
            share.credit += loan;
        }
    }

    /// Milliseconds until a domain is out of debt; `None`: it is not in debt.
    pub(crate) fn wait_ms(&self, share: &Share) -> Option<u64> {
        let debt = share.owed.saturating_sub(share.credit.min(0));
        if debt == 0 {
            return None;
        }
        let wait = debt.saturating_mul(1000 * self.domains.max(1)) / RATE + 1;
        u64::try_from(wait).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lone_writer_gets_the_rate_and_no_more() {
        let mut limit = RateLimit::default();
        let mut share = limit.join(0);
        let mut written = 0;
        for now_ms in 0..10_000 {
            limit.earn(&mut share, now_ms);
            while limit.wait_ms(&share).is_none() {
                limit.pay(&mut share, 0, now_ms);
                written += 1;
            }
        }
        // Ten seconds at 200, and the first burst of 10.
        assert!((2000..=2020).contains(&written), "{written}");
    }

    #[test]
    fn a_quiet_domains_savings_are_not_another_ones_debt() {
        let mut limit = RateLimit::default();
        let mut noisy = limit.join(0);
        let mut quiet = limit.join(0);
        for now_ms in 0..2000 {
            limit.earn(&mut noisy, now_ms);
            while limit.wait_ms(&noisy).is_none() {
                limit.pay(&mut noisy, 0, now_ms);
            }
        }
        limit.earn(&mut quiet, 2000);
        for _ in 0..10 {
            assert_eq!(limit.wait_ms(&quiet), None);
            limit.pay(&mut quiet, 0, 2000);
        }
        limit.leave(quiet);
        limit.leave(noisy);
    }

    #[test]
    fn old_states_are_not_paid_from_the_reserve() {
        let mut limit = RateLimit::default();
        let mut share = limit.join(0);
        // A rest that fills the reserve.
        limit.earn(&mut share, 60_000);
        for _ in 0..100 {
            limit.pay(&mut share, BYTES, 60_000);
            assert_eq!(limit.wait_ms(&share), None, "a plain write is");
        }
        limit.pay(&mut share, 1001 * BYTES, 60_000);
        let wait = limit.wait_ms(&share).unwrap();
        assert!((4_950..5_010).contains(&wait), "{wait} ms");
        limit.earn(&mut share, 60_000 + wait);
        assert_eq!(limit.wait_ms(&share), None);
        // In part, in proportion.
        limit.pay(&mut share, BYTES * 3 / 2, 60_000 + wait);
        let wait = limit.wait_ms(&share).unwrap();
        assert!((2..5).contains(&wait), "{wait} ms");
    }

    #[test]
    fn the_wait_is_long_enough() {
        let mut limit = RateLimit::default();
        let mut share = limit.join(0);
        while limit.wait_ms(&share).is_none() {
            limit.pay(&mut share, 0, 0);
        }
        let wait = limit.wait_ms(&share).unwrap();
        limit.earn(&mut share, wait);
        assert_eq!(limit.wait_ms(&share), None);
    }
}
