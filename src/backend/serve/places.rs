//! Who has a connection: a bounded number of places, most of them for hosts.
//!
//! A host is a peer that shows the present certificate of a collector that is not removed. All
//! others are strangers, whatever certificate they show. A new connection is never shut out by ones
//! that prove nothing: it takes the place of the one that is worth least. Strangers have a part of
//! the places, each address a part of those. A host counts for its collector, not its address, so
//! that any number of hosts may stand behind one address, and a collector that was given many
//! certificates has the places of one.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use uuid::Uuid;

use super::super::config::Limits;
use super::super::network::Network;
use super::progress::{Progress, Worth};
use crate::clock;

/// How many connections there may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// In all.
    total: usize,
    /// Of strangers.
    unverified: usize,
    /// Of strangers at one address.
    per_address: usize,
    /// Of one collector.
    per_collector: usize,
}

/// The places of one listener.
pub(super) struct Places {
    bounds: Bounds,
    table: Mutex<Table>,
    freed: Notify,
}

/// A connection's place, given back when it is dropped.
pub(super) struct Place {
    number: u64,
    places: Arc<Places>,
    progress: Arc<Progress>,
    taken_away: Arc<Notify>,
}

/// How often it is said that connections have been ended.
const TOLD_EVERY: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Table {
    /// By age, oldest first.
    holders: BTreeMap<u64, Holder>,
    next: u64,
    ended: Ended,
}

/// Connections that were ended to make room, as far as nobody has been told.
#[derive(Debug, Default)]
struct Ended {
    count: u64,
    told: Option<Instant>,
}

struct Holder {
    owner: Owner,
    /// Where it comes from, whoever it is.
    network: Network,
    progress: Arc<Progress>,
    taken_away: Arc<Notify>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Owner {
    Address(Network),
    Collector(Uuid),
}

impl Bounds {
    /// Of a listener where a certificate can be shown.
    pub(super) fn of(limits: &Limits) -> Self {
        Self {
            total: limits.connections_max,
            unverified: limits.connections_unverified_max.min(limits.connections_max),
            per_address: limits.connections_per_address_max,
            per_collector: limits.connections_per_collector_max,
        }
    }

    /// Of a listener on loopback, where all peers have one address and none has a certificate.
    pub(super) fn local(limits: &Limits) -> Self {
        let total = limits.connections_max;
        Self { total, unverified: total, per_address: total, per_collector: total }
    }
}

impl Places {
    pub(super) fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self { bounds, table: Mutex::default(), freed: Notify::new() })
    }

    /// A place for a new connection. Waits only while every place is held by a host of its own
    /// with a request in the works.
    pub(super) async fn take(self: &Arc<Self>, address: IpAddr) -> Place {
        loop {
            if let Some(place) = self.try_take(address.into(), clock::monotonic()) {
                return place;
            }
            self.freed.notified().await;
        }
    }

    fn try_take(self: &Arc<Self>, network: Network, now: Instant) -> Option<Place> {
        let mut table = self.lock();
        if !table.make_room(network, &self.bounds, now) {
            return None;
        }
        let progress = Arc::new(Progress::new(now));
        let taken_away = Arc::new(Notify::new());
        let number = table.next;
        table.next += 1;
        let holder = Holder {
            owner: Owner::Address(network),
            network,
            progress: Arc::clone(&progress),
            taken_away: Arc::clone(&taken_away),
        };
        table.holders.insert(number, holder);
        drop(table);
        Some(Place { number, places: Arc::clone(self), progress, taken_away })
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// The connection's state.
    pub(super) fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// The peer has shown the present certificate of this collector.
    pub(super) fn verified(&self, collector: Uuid) {
        let mut table = self.places.lock();
        let owner = Owner::Collector(collector);
        if table.count(&owner) >= self.places.bounds.per_collector {
            table.take_away(clock::monotonic(), |holder| holder.owner == owner);
        }
        // Absent when the place was taken away meanwhile.
        if let Some(holder) = table.holders.get_mut(&self.number) {
            holder.owner = owner;
        }
    }

    /// The peer is a stranger after all: its collector's certificate was replaced.
    pub(super) fn forsaken(&self) {
        self.places.lock().forsake(&self.places.bounds, |number, _| number == self.number);
    }

    /// The peer's collector is removed: all places that it has are strangers' now.
    pub(super) fn collector_removed(&self) {
        let mut table = self.places.lock();
        let Some(owner) = table.holders.get(&self.number).map(|holder| holder.owner) else {
            return;
        };
        table.forsake(&self.places.bounds, |_, holder| holder.owner == owner);
    }

    /// Ends when another connection needs the place.
    pub(super) async fn taken_away(&self) {
        self.taken_away.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().holders.remove(&self.number);
        self.places.freed.notify_one();
    }
}

impl Table {
    /// Makes room for one more of `network`; `false` when there is none to be made.
    fn make_room(&mut self, network: Network, bounds: &Bounds, now: Instant) -> bool {
        let own = Owner::Address(network);
        if self.count(&own) >= bounds.per_address {
            return self.take_away(now, |holder| holder.owner == own);
        }
        let unverified = self.unverified();
        let is_full = self.holders.len() >= bounds.total;
        if unverified < bounds.unverified && !is_full {
            return true;
        }
        if unverified > 0 {
            return self.take_from_strangers(now);
        }
        // All places are held by hosts: one that asks for nothing can come again.
        if self.take_away(now, |holder| holder.progress.worth(now) < Worth::Busy) {
            return true;
        }
        // All are busy: who has the most gives one, but nobody the only one.
        match self.largest(Holder::is_verified) {
            Some((most, 2..)) => self.take_away(now, |holder| holder.owner == most),
            _ => false,
        }
    }

    /// Ends a stranger's connection: a silent one of whatever address, else one of the address
    /// that has the most. Idle ones of others come no earlier: a host is one until its handshake is
    /// done.
    fn take_from_strangers(&mut self, now: Instant) -> bool {
        let is_silent =
            |holder: &Holder| !holder.is_verified() && holder.progress.worth(now) == Worth::Silent;
        let mut counts: HashMap<Owner, usize> = HashMap::new();
        for holder in self.holders.values().filter(|holder| is_silent(holder)) {
            *counts.entry(holder.owner).or_default() += 1;
        }
        let silent = self.holders.iter().filter(|(_, holder)| is_silent(holder));
        let first = silent
            .min_by_key(|(number, holder)| (Reverse(counts.get(&holder.owner)), **number))
            .map(|(_, holder)| holder.owner);
        let most = || self.largest(|holder| !holder.is_verified()).map(|(most, _)| most);
        let owner = first.or_else(most);
        owner.is_some_and(|owner| self.take_away(now, |holder| holder.owner == owner))
    }

    /// Makes strangers of these holders, and ends the connections that strangers have too many.
    fn forsake(&mut self, bounds: &Bounds, of: impl Fn(u64, &Holder) -> bool) {
        let mut addresses = Vec::new();
        for (number, holder) in &mut self.holders {
            if holder.is_verified() && of(*number, holder) {
                holder.owner = Owner::Address(holder.network);
                addresses.push(holder.owner);
            }
        }
        let now = clock::monotonic();
        for own in addresses {
            while self.count(&own) > bounds.per_address {
                self.take_away(now, |holder| holder.owner == own);
            }
        }
        while self.unverified() > bounds.unverified {
            self.take_from_strangers(now);
        }
    }

    fn unverified(&self) -> usize {
        self.holders.values().filter(|holder| !holder.is_verified()).count()
    }

    fn count(&self, owner: &Owner) -> usize {
        self.holders.values().filter(|holder| holder.owner == *owner).count()
    }

    /// The owner with the most of these connections, and their number.
    fn largest(&self, of: impl Fn(&Holder) -> bool) -> Option<(Owner, usize)> {
        let mut counts: HashMap<Owner, usize> = HashMap::new();
        for holder in self.holders.values().filter(|holder| of(holder)) {
            *counts.entry(holder.owner).or_default() += 1;
        }
        counts.into_iter().max_by_key(|(_, count)| *count)
    }

    /// Ends the connection that is worth least, the oldest of those, among the ones `of`.
    fn take_away(&mut self, now: Instant, of: impl Fn(&Holder) -> bool) -> bool {
        let candidates = self.holders.iter().filter(|(_, holder)| of(holder));
        let worth = |holder: &Holder| holder.progress.worth(now);
        let least = candidates.min_by_key(|(number, holder)| (worth(holder), **number));
        let Some(number) = least.map(|(number, _)| *number) else { return false };
        if let Some(holder) = self.holders.remove(&number) {
            holder.taken_away.notify_one();
        }
        if let Some(connections) = self.ended.one_more(now) {
            tracing::warn!(
                connections,
                holders = self.holders.len(),
                "connections ended to make room for others; hint: if these are hosts and not an \
                 attack, raise limits.connections_*"
            );
        }
        true
    }
}

impl Ended {
    /// Counts one; the number to be told, if it is time to.
    fn one_more(&mut self, now: Instant) -> Option<u64> {
        self.count += 1;
        if self.told.is_some_and(|told| now.saturating_duration_since(told) < TOLD_EVERY) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.count))
    }
}

impl Holder {
    fn is_verified(&self) -> bool {
        matches!(self.owner, Owner::Collector(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use futures_util::FutureExt as _;

    /// A place for a peer of `10.0.0.last`; whoever came before is not new any more.
    fn later(places: &Arc<Places>, last: u8) -> Option<Place> {
        let count = u32::try_from(places.lock().next).expect("small");
        places.try_take(address(last), clock::monotonic() + Duration::from_secs(2) * count)
    }

    const BOUNDS: Bounds = Bounds { total: 6, unverified: 4, per_address: 2, per_collector: 2 };

    fn address(last: u8) -> Network {
        IpAddr::from([10, 0, 0, last]).into()
    }

    fn is_away(place: &Place) -> bool {
        place.taken_away().now_or_never().is_some()
    }

    fn verified(places: &Arc<Places>, last: u8, collector: u128) -> Place {
        let place = later(places, last).expect("a place");
        place.progress().note_read();
        place.verified(Uuid::from_u128(collector));
        place
    }

    /// An address over its part loses its own connections, silent ones before others.
    #[test]
    fn an_address_hinders_only_itself() {
        let places = Places::new(BOUNDS);
        let take = |last| later(&places, last).expect("a place");
        let (spoke, silent, other) = (take(1), take(1), take(2));
        spoke.progress().note_read();
        let third = take(1);
        assert!(!is_away(&spoke) && is_away(&silent) && !is_away(&other) && !is_away(&third));
        let fourth = take(1);
        assert!(!is_away(&spoke) && is_away(&third) && !is_away(&fourth));
    }

    /// The places of all unverified peers are full: the address with the most gives one.
    #[test]
    fn the_largest_address_makes_room() {
        let places = Places::new(BOUNDS);
        let take = |last| later(&places, last).expect("a place");
        let (one, other) = (take(1), take(2));
        let many = [take(3), take(3)];
        let fifth = take(4);
        assert!(is_away(&many[0]) && !is_away(&many[1]));
        assert!(!is_away(&one) && !is_away(&other) && !is_away(&fifth));
    }

    /// A host whose handshake is not done makes no room for a crowd that keeps itself busy.
    #[test]
    fn a_busy_address_makes_room_before_others_that_are_idle() {
        let places = Places::new(BOUNDS);
        let take = |last| later(&places, last).expect("a place");
        let many = [take(3), take(3)];
        let work = [many[0].progress().begin(), many[1].progress().begin()];
        let (one, other) = (take(1), take(2));
        for host in [&one, &other] {
            host.progress().note_read();
        }
        let fifth = take(4);
        assert!(is_away(&many[0]) && !is_away(&many[1]));
        assert!(!is_away(&one) && !is_away(&other) && !is_away(&fifth));
        drop(work);
    }

    /// What is silent goes before what has spoken, wherever it comes from: one silent connection
    /// each of many addresses pushes no stranger out.
    #[test]
    fn silent_strangers_make_room_first() {
        let places = Places::new(BOUNDS);
        let take = |last| later(&places, last).expect("a place");
        let (busy, idle) = (take(1), take(1));
        busy.progress().note_read();
        idle.progress().note_read();
        let work = busy.progress().begin();
        let silent = [take(2), take(3)];
        let one = take(4);
        assert!(is_away(&silent[0]) && !is_away(&silent[1]) && !is_away(&idle));
        let two = take(5);
        assert!(is_away(&silent[1]) && !is_away(&one) && !is_away(&idle));
        one.progress().note_read();
        two.progress().note_read();
        let three = take(6);
        assert!(is_away(&idle) && !is_away(&busy), "of the idle ones the largest address's");
        assert!([&one, &two, &three].iter().all(|place| !is_away(place)));
        drop(work);
    }

    /// Who is a collector no more has the places of a stranger, and no more of them.
    #[test]
    fn a_removed_collector_is_a_stranger() {
        let places = Places::new(Bounds { per_collector: 4, ..BOUNDS });
        let stranger = later(&places, 1).expect("a place");
        stranger.progress().note_read();
        let held: Vec<_> = (0..4).map(|_| verified(&places, 1, 1)).collect();
        let other = verified(&places, 1, 2);
        held[3].collector_removed();
        let kept: Vec<_> = held.iter().map(|place| !is_away(place)).collect();
        assert_eq!((is_away(&stranger), kept), (true, vec![false, false, true, true]));
        assert_eq!(places.lock().unverified(), 2);
        // Of another collector one connection alone shows the certificate of before.
        let same = verified(&places, 9, 2);
        same.forsaken();
        assert_eq!(places.lock().unverified(), 3);
        assert!(!is_away(&other) && !is_away(&same));
        assert!(places.lock().count(&Owner::Collector(Uuid::from_u128(2))) == 1);
    }

    /// Hosts have the other places to themselves, however many come from one address.
    #[test]
    fn a_host_frees_the_place_of_its_address() {
        let places = Places::new(BOUNDS);
        let hosts: Vec<_> = (0..5).map(|n| verified(&places, 1, n)).collect();
        let strangers = [later(&places, 1), later(&places, 2)];
        assert!(hosts.iter().all(|host| !is_away(host)));
        assert!(is_away(strangers[0].as_ref().expect("it had one")));
        let sixth = verified(&places, 1, 5);
        assert!(hosts.iter().chain([&sixth]).all(|host| !is_away(host)));
        // All places are held by hosts: the one that is idle for longest comes again.
        let work: Vec<_> = hosts.iter().skip(1).map(|host| host.progress().begin()).collect();
        let seventh = later(&places, 9).expect("a place");
        assert!(is_away(&hosts[0]));
        drop(seventh);
        let _busy = sixth.progress().begin();
        let eighth = verified(&places, 9, 8);
        let _busy = eighth.progress().begin();
        assert!(later(&places, 9).is_none(), "everybody is busy");
        drop(work);
    }

    /// A storm is one line a minute, with all that were ended since the last.
    #[test]
    fn ended_connections_are_told_once_a_minute() {
        let (mut ended, start) = (Ended::default(), clock::monotonic());
        let mut at = |seconds| ended.one_more(start + Duration::from_secs(seconds));
        assert_eq!(at(0), Some(1));
        assert!((1..60).all(|second| at(second).is_none()));
        assert_eq!((at(60), at(61), at(120)), (Some(60), None, Some(2)));
        let places = Places::new(BOUNDS);
        let held: Vec<_> = (0..3).map(|_| later(&places, 1).expect("a place")).collect();
        let told = places.lock().ended.told;
        assert!(is_away(&held[0]) && told.is_some(), "the third has made room");
    }

    /// All places are held by busy hosts: the one with the most gives one, and none its only one.
    #[test]
    fn a_busy_collector_gives_what_it_has_more_than_others() {
        let places = Places::new(Bounds { per_collector: 3, ..BOUNDS });
        let owners = [1, 2, 2, 3, 3, 3];
        let held = owners.map(|owner| verified(&places, 1, owner));
        let busy: Vec<_> = held.iter().map(|place| place.progress().begin()).collect();
        let new = [4, 5, 6].map(|owner| {
            let place = verified(&places, 9, owner);
            (place.progress().begin(), place)
        });
        let kept = held.each_ref().map(|place| !is_away(place));
        assert_eq!(kept.iter().filter(|kept| **kept).count(), 3, "{kept:?}");
        assert!(kept[0] && kept[5], "{kept:?}");
        assert!(new.iter().all(|(_, place)| !is_away(place)));
        assert!(later(&places, 9).is_none(), "each has one");
        drop(busy);
    }

    #[test]
    fn a_collector_has_its_part() {
        let places = Places::new(BOUNDS);
        let one = verified(&places, 1, 1);
        let two = verified(&places, 2, 1);
        let other = verified(&places, 3, 2);
        let three = verified(&places, 4, 1);
        assert!(is_away(&one) && !is_away(&two) && !is_away(&other) && !is_away(&three));
    }
}
