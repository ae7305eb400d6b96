//! The invariants that are asked of the journal, one checker each. What is asked of every step is in the world.

use std::collections::{BTreeMap, BTreeSet};

use super::journal::{Journal, Life, Record, Session};
use super::report::Violation;
use crate::Stats;
use crate::shard::{AckMode, Replay, SendMode};

type Verdict = Result<(), Violation>;

fn broken(invariant: &'static str, text: String) -> Verdict {
    Err(Violation { invariant, text })
}

/// All that can be asked when everything has come to rest.
pub(super) fn at_rest(journal: &Journal) -> Verdict {
    for (number, record) in journal.lives.iter().enumerate() {
        let life = Life(number as u32);
        order(journal, life, record)?;
        no_duplicates(journal, life, record)?;
        gaps_have_reasons(journal, life, record)?;
        blanks_were_sent(journal, life, record)?;
        nothing_is_older_than_it_may_be(journal, life, record)?;
    }
    for (number, record) in journal.lives.iter().enumerate() {
        let life = Life(number as u32);
        match record.mode {
            SendMode::Publish => links_that_live_miss_nothing(journal, life, record)?,
            SendMode::RoundRobin => {
                nothing_goes_to_two(journal, life)?;
                nothing_is_lost(journal, life, record)?;
            }
        }
    }
    Ok(())
}

/// I3: what one receiver gets from one sender comes in the order in which it was sent. Round-robin re-routes may break it.
fn order(journal: &Journal, receiver: Life, record: &Record) -> Verdict {
    for (&sender, numbers) in &record.received {
        let from = &journal.lives[sender.0 as usize];
        // A re-route may break it, and so does the end of a process, which nobody sees.
        if record.stock || from.mode == SendMode::RoundRobin && (from.disconnects > 0 || from.over) {
            continue;
        }
        // What a connection that was given up still carried may come after what the next one brought: once for each but the last.
        let ended = from.sessions.iter().filter(|session| session.peer == record.identity && session.to.is_some());
        let ended = ended.count();
        // And each may begin with what was there before.
        let again = if from.replay.0 == Replay::Live { 0 } else { ended };
        let excused = ended.saturating_sub(1) + again;
        if let Some(pair) = numbers.windows(2).filter(|pair| pair[0] > pair[1]).nth(excused) {
            let to = |number: u32| from.sent[number as usize].to.map_or("all", |_| "this one alone");
            let text = format!(
                "{receiver:?} received {} (for {}) before {} (for {}) of {sender:?} ({:?}, {:?}, {} links ended)",
                pair[0],
                to(pair[0]),
                pair[1],
                to(pair[1]),
                from.mode,
                from.delivery,
                from.disconnects
            );
            return broken("I3", text);
        }
    }
    Ok(())
}

/// I4: at most once is never twice, on one link.
fn no_duplicates(journal: &Journal, receiver: Life, record: &Record) -> Verdict {
    for (sender, numbers) in &record.received {
        let from = &journal.lives[sender.0 as usize];
        if record.stock || from.stock {
            continue;
        }
        // On the next link what was kept may come again.
        let copies_max = |number: u32| {
            let again = |session: &&Session| number < session.from && from.may_replay(session, number);
            1 + from.sessions_with(record.identity).filter(again).count()
        };
        let mut seen: BTreeMap<u32, usize> = BTreeMap::new();
        let is_more = |number: &&u32| {
            let copies = seen.entry(**number).or_default();
            *copies += 1;
            *copies > 1 && *copies > copies_max(**number)
        };
        if let Some(twice) = numbers.iter().find(is_more) {
            return broken("I4", format!("{receiver:?} received {twice} of {sender:?} twice"));
        }
    }
    Ok(())
}

/// I4, round-robin: a message goes to one peer.
fn nothing_goes_to_two(journal: &Journal, sender: Life) -> Verdict {
    let mut seen = BTreeMap::new();
    for (number, record) in journal.lives.iter().enumerate() {
        for &message in record.received.get(&sender).into_iter().flatten() {
            let sent = &journal.lives[sender.0 as usize];
            // A hand-over may double what had arrived and was not acknowledged.
            let may_double = record.stock || sent.stock || sent.is_at_least_once() && sent.disconnects > 0;
            if let Some(first) = seen.insert(message, number).filter(|_| !may_double) {
                return broken("I4", format!("message {message} of {sender:?} went to {first} and to {number}"));
            }
        }
    }
    Ok(())
}

/// I1: at least once loses nothing while the sender lives, but for what it has told of as expired.
fn nothing_is_lost(journal: &Journal, sender: Life, record: &Record) -> Verdict {
    if !journal.stolen.is_empty()
        || !record.is_at_least_once()
        || record.over
        || !record.sessions.iter().any(|session| session.to.is_none())
    {
        return Ok(());
    }
    // One who acknowledges on receipt and dies takes what its application had not seen with it.
    let was_peer = |life: &Record| record.sessions.iter().any(|session| session.peer == life.identity);
    if journal.lives.iter().any(|life| life.ack_mode == AckMode::OnReceipt && life.over && was_peer(life)) {
        return Ok(());
    }
    let all = journal.lives.iter().filter_map(|life| life.received.get(&sender)).flatten();
    let has: BTreeSet<u32> = all.copied().collect();
    let mut excused = record.expired;
    for (number, sent) in record.sent.iter().enumerate().filter(|(number, _)| !has.contains(&(*number as u32))) {
        // What is for somebody who never came back waits.
        let waits = sent.to.is_some_and(|to| !record.sessions.iter().any(|s| s.peer == to && s.to.is_none()));
        if !waits && excused > 0 {
            excused -= 1;
        } else if !waits {
            return broken("I1", format!("message {number} of {sender:?} ({sent:?}) was lost"));
        }
    }
    Ok(())
}

/// I5: under PUBLISH a receiver misses messages of a sender only where a link between them has ended, or where a policy skips them
/// and says so. Who has died may have skipped more than it had time to tell.
fn gaps_have_reasons(journal: &Journal, receiver: Life, record: &Record) -> Verdict {
    for (&sender, numbers) in &record.received {
        let from = &journal.lives[sender.0 as usize];
        let untold = from.over && from.skips;
        if from.mode != SendMode::Publish || untold || journal.stolen.contains(&record.identity) {
            continue;
        }
        // A snapshot is nothing but gaps.
        let snapshots = from.sessions_with(record.identity).filter(|_| from.replay.0 == Replay::Snapshot);
        let live = snapshots.map(|session| session.from).max().unwrap_or(0);
        let between = |pair: &&[u32]| {
            let mut passed = live.max(pair[0] + 1)..pair[1];
            passed.any(|number| from.sent[number as usize].to.is_none() && !from.is_replaced(number))
        };
        // What was for this one alone is lost with the link, while the rest may wait for the next.
        let numbers: Vec<u32> =
            numbers.iter().copied().filter(|number| from.sent[*number as usize].to.is_none()).collect();
        let gaps = numbers.windows(2).filter(between).count();
        let ends =
            from.sessions.iter().filter(|session| session.peer == record.identity && session.to.is_some()).count();
        let skipped: u64 =
            from.sessions.iter().filter(|session| session.peer == record.identity).map(|session| session.skipped).sum();
        if gaps as u64 > ends as u64 + skipped {
            return broken(
                "I5",
                format!("{receiver:?} has {gaps} gaps in {sender:?}'s messages, with {ends} links ended"),
            );
        }
    }
    Ok(())
}

/// I2, for messages too short to be told apart.
fn blanks_were_sent(journal: &Journal, receiver: Life, record: &Record) -> Verdict {
    // Who knows no duplicates counts what is sent again.
    for (identity, blanks) in record.blanks_received.iter().filter(|_| !record.stock) {
        for (len, &count) in blanks.iter().enumerate() {
            let senders = journal.lives.iter().filter(|sender| sender.identity == *identity);
            // What is kept is given again on each link.
            let copies = |sender: &Record| match sender.replay.0 {
                Replay::Oldest => sender.sessions_with(record.identity).count().max(1) as u64,
                _ => 1,
            };
            let sent: u64 = senders.map(|sender| sender.blanks[len] * copies(sender)).sum();
            if count > sent {
                return broken(
                    "I2",
                    format!("{receiver:?} received {count} messages of {len} bytes from {identity}, {sent} sent"),
                );
            }
        }
    }
    Ok(())
}

/// I5: who comes late gets nothing from before but what the publisher keeps for it: the newest value of each key, or so many messages.
fn nothing_is_older_than_it_may_be(journal: &Journal, receiver: Life, record: &Record) -> Verdict {
    for (&sender, numbers) in &record.received {
        let from = &journal.lives[sender.0 as usize];
        if from.mode != SendMode::Publish || journal.stolen.contains(&record.identity) {
            continue;
        }
        let may = |number: u32| {
            let mut sessions = from.sessions_with(record.identity);
            sessions.any(|session| number >= session.floor || from.may_replay(session, number))
        };
        if let Some(old) = numbers.iter().find(|number| !may(**number)) {
            let floors: Vec<u32> = from.sessions_with(record.identity).map(|session| session.floor).collect();
            let replay = from.replay;
            let text = format!("{receiver:?} received {old} of {sender:?} ({replay:?}), and came at {floors:?}");
            return broken("I5", text);
        }
    }
    Ok(())
}

/// I5: a peer whose link lives has got all that was sent since it began, but for what was told as skipped.
fn links_that_live_miss_nothing(journal: &Journal, sender: Life, record: &Record) -> Verdict {
    if record.over {
        return Ok(());
    }
    for session in record.sessions.iter().filter(|session| session.to.is_none()) {
        let Some(receiver) = journal.living(session.peer) else { continue };
        let received = journal.lives[receiver.0 as usize].received.get(&sender);
        let got_it = |number: &u32| received.is_some_and(|numbers| numbers.contains(number));
        if let Some(missing) = record.replayed(session).into_iter().find(|number| !got_it(number)) {
            let (from, replay) = (session.from, record.replay);
            let text = format!("{receiver:?} came at {from} of {sender:?} ({replay:?}) and was not given {missing}");
            return broken("I5", text);
        }
        if session.skipped == 0 {
            if let Some(missing) = record.missing(session.from, session.peer, received) {
                let sent = &record.sent[missing as usize];
                return broken("I5", format!("{receiver:?} did not get message {missing} of {sender:?} ({sent:?})"));
            }
            continue;
        }
        let got = received.map_or(0, |numbers| numbers.iter().filter(|number| **number >= session.from).count()) as u64;
        let sent =
            (session.from..record.sent.len() as u32).filter(|number| record.is_for(*number, session.peer)).count();
        let missed = (sent as u64).wrapping_sub(got);
        // Some that are skipped may be of the backlog.
        if got > sent as u64 || session.skipped < missed || session.skipped > missed + session.backlog {
            let text =
                format!("{receiver:?} got {got} of {sent} messages of {sender:?}, {} were skipped", session.skipped);
            return broken("I5", text);
        }
    }
    Ok(())
}

/// I11: each message of the last round has come to all (PUBLISH) or one (ROUNDROBIN). Nothing if it is not so yet.
pub(super) fn last_round_missing(journal: &Journal) -> Option<String> {
    for (number, record) in journal.lives.iter().enumerate().filter(|(_, record)| !record.over) {
        let (sender, Some(first)) = (Life(number as u32), record.last_round) else { continue };
        let last = record.sent.len() as u32;
        let peers: Vec<Life> = record
            .sessions
            .iter()
            .filter(|session| session.to.is_none() && session.from <= first)
            .filter_map(|session| journal.living(session.peer))
            .collect();
        let got = |peer: &Life| {
            let numbers = journal.lives[peer.0 as usize].received.get(&sender);
            numbers.map_or(0, |numbers| numbers.iter().filter(|number| **number >= first).count())
        };
        let wanted = (last - first) as usize;
        match record.mode {
            SendMode::Publish => {
                for peer in &peers {
                    let identity = journal.lives[peer.0 as usize].identity;
                    let received = journal.lives[peer.0 as usize].received.get(&sender);
                    let live = |session: &&Session| session.peer == identity && session.to.is_none();
                    let skipped: u64 = record.sessions.iter().filter(live).map(|session| session.skipped).sum();
                    let missing = record.missing(first, identity, received);
                    let wanted = (first..last).filter(|number| record.is_for(*number, identity)).count() as u64;
                    if skipped == 0 && missing.is_some()
                        || (got(peer) as u64) < wanted.saturating_sub(skipped) && skipped > 0
                    {
                        return Some(format!(
                            "{peer:?} has {} of the last messages of {sender:?}, not {missing:?}",
                            got(peer)
                        ));
                    }
                }
            }
            SendMode::RoundRobin => {
                let all: usize = (0..journal.lives.len() as u32).map(|peer| got(&Life(peer))).sum();
                // What a dying link had handed to the kernel may be lost.
                let quiet = record.disconnects == record.disconnects_before && record.expired == 0;
                if all < wanted && !peers.is_empty() && quiet {
                    return Some(format!("{all} of the last {wanted} messages of {sender:?} have come to anybody"));
                }
            }
        }
    }
    None
}

/// I10: at rest every message is accounted for, per peer it is addressed to, and the events tell what the counters count.
pub(super) fn accounts(life: Life, record: &Record, stats: &Stats) -> Verdict {
    let directed = record.sent.iter().filter(|sent| sent.to.is_some()).count() as u64;
    let all = record.undirected + directed;
    if stats.messages_sent != all {
        return broken("I10", format!("{life:?} sent {all} messages and counts {}", stats.messages_sent));
    }
    let told = (record.dropped, record.expired);
    if told != (stats.messages_dropped, stats.messages_expired) {
        return broken("I10", format!("{life:?} told of (dropped, expired) {told:?} and counts {stats:?}"));
    }
    if !record.expires && record.expired > 0 {
        return broken("I1", format!("{} messages of {life:?} expired before their time", record.expired));
    }
    if !stats.is_balanced() {
        return broken("I10", format!("{life:?} does not know of {} messages: {stats:?}", stats.balance()));
    }
    let addressed = stats.messages_addressed;
    match record.mode {
        SendMode::RoundRobin if addressed != all => broken(
            "I10",
            format!("{life:?} sent {all} messages in the circle, {addressed} are accounted for: {stats:?}"),
        ),
        SendMode::RoundRobin => {
            let settled = stats.messages_acknowledged + stats.messages_expired;
            // What was for one who is gone waits.
            let certain = record.is_at_least_once() && directed == 0 && stats.peers > 0;
            if certain && settled != all {
                return broken("I11", format!("{life:?} sent {all}, not all acknowledged once: {stats:?}"));
            }
            Ok(())
        }
        SendMode::Publish if stats.peers == 0 => Ok(()),
        SendMode::Publish => {
            // While a dead link is still being settled, messages count for it and for its successor.
            let due = record.due() + directed;
            let replayed_max = record.replay.1 * record.sessions.len() as u64;
            if addressed < due || (record.disconnects == 0 && addressed > due + replayed_max) {
                let text =
                    format!("{life:?} owes {due} messages to its peers, {addressed} are accounted for: {stats:?}");
                return broken("I10", text);
            }
            Ok(())
        }
    }
}

/// I1, how it is kept: a message is acknowledged only when an application has taken it.
pub(super) fn acknowledged_were_taken(journal: &Journal, sender: Life, stats: &Stats) -> Verdict {
    let record = &journal.lives[sender.0 as usize];
    let was_peer = |life: &Record| record.sessions.iter().any(|session| session.peer == life.identity);
    if journal.lives.iter().any(|life| life.ack_mode == AckMode::OnReceipt && was_peer(life)) {
        return Ok(());
    }
    let (acknowledged, taken) = (stats.messages_acknowledged, journal.taken(sender));
    if acknowledged > taken {
        return broken("I1", format!("{acknowledged} messages of {sender:?} are acknowledged, {taken} were taken"));
    }
    Ok(())
}

/// I11: what was sent just before an orderly close has come to all (PUBLISH) or one (ROUNDROBIN) of those who were connected.
pub(super) fn farewell_missing(journal: &Journal) -> Option<String> {
    for (number, record) in journal.lives.iter().enumerate() {
        let (sender, Some((first, peers))) = (Life(number as u32), &record.farewell) else { continue };
        let Some(undelivered) = record.undelivered else { return Some(format!("{sender:?} is not closed")) };
        let wanted = record.sent.len() - *first as usize;
        let got = |peer: &Life| {
            let numbers = journal.lives[peer.0 as usize].received.get(&sender);
            numbers.map_or(0, |numbers| numbers.iter().filter(|number| **number >= *first).count())
        };
        let arrived = match record.mode {
            SendMode::Publish => peers.iter().map(got).min().unwrap_or(wanted),
            SendMode::RoundRobin => peers.iter().map(got).sum(),
        };
        // At least once counts what is not acknowledged, and what is for somebody who is gone: that may wait in vain.
        if undelivered > 0 && !record.is_at_least_once() || arrived < wanted {
            let text = format!(
                "of {wanted} messages {sender:?} sent before its close {arrived} arrived; {undelivered} undelivered"
            );
            return Some(text);
        }
    }
    None
}

/// I6: in a round in which nobody joined, left or was full, everybody got the same number of messages, give or take one.
pub(super) fn fair_shares(journal: &Journal) -> Verdict {
    for (number, record) in journal.lives.iter().enumerate() {
        let (sender, Some(first)) = (Life(number as u32), record.last_round) else { continue };
        if record.mode != SendMode::RoundRobin || record.over || record.disconnects != record.disconnects_before {
            continue;
        }
        let live = record.sessions.iter().filter(|session| session.to.is_none());
        let shares: Vec<usize> = live
            .filter_map(|session| journal.living(session.peer))
            .map(|peer| {
                let numbers = journal.lives[peer.0 as usize].received.get(&sender);
                let undirected = |number: &&u32| **number >= first && record.sent[**number as usize].to.is_none();
                numbers.map_or(0, |numbers| numbers.iter().filter(undirected).count())
            })
            .collect();
        let (Some(most), Some(least)) = (shares.iter().max(), shares.iter().min()) else { continue };
        if most - least > 1 {
            return broken("I6", format!("{sender:?} dealt {shares:?}"));
        }
    }
    Ok(())
}
