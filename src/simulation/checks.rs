//! The invariants that are asked of the journal, one checker each. What is asked of every step is in the world.

use std::collections::{BTreeMap, BTreeSet};

use super::journal::{Journal, Life, Record};
use super::report::Violation;
use crate::shard::{AckMode, SendMode};

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
        if from.mode == SendMode::RoundRobin && (from.disconnects > 0 || from.over) {
            continue;
        }
        if let Some(pair) = numbers.windows(2).find(|pair| pair[0] > pair[1]) {
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

/// I4: at most once is never twice.
fn no_duplicates(_journal: &Journal, receiver: Life, record: &Record) -> Verdict {
    for (sender, numbers) in &record.received {
        let mut seen = BTreeSet::new();
        if let Some(twice) = numbers.iter().find(|number| !seen.insert(**number)) {
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
            let may_double = sent.is_at_least_once() && sent.disconnects > 0;
            if let Some(first) = seen.insert(message, number).filter(|_| !may_double) {
                return broken("I4", format!("message {message} of {sender:?} went to {first} and to {number}"));
            }
        }
    }
    Ok(())
}

/// I1: at least once loses nothing while the sender lives. (The plans let nothing expire.)
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
    for (number, sent) in record.sent.iter().enumerate().filter(|(number, _)| !has.contains(&(*number as u32))) {
        // What is for somebody who never came back waits.
        let waits = sent.to.is_some_and(|to| !record.sessions.iter().any(|s| s.peer == to && s.to.is_none()));
        if !waits {
            return broken("I1", format!("message {number} of {sender:?} ({sent:?}) was lost"));
        }
    }
    Ok(())
}

/// I5: under PUBLISH a receiver misses messages of a sender only where a link between them has ended.
fn gaps_have_reasons(journal: &Journal, receiver: Life, record: &Record) -> Verdict {
    for (&sender, numbers) in &record.received {
        let from = &journal.lives[sender.0 as usize];
        if from.mode != SendMode::Publish || journal.stolen.contains(&record.identity) {
            continue;
        }
        let between = |pair: &&[u32]| (pair[0] + 1..pair[1]).any(|number| from.sent[number as usize].to.is_none());
        // What was for this one alone is lost with the link, while the rest may wait for the next.
        let numbers: Vec<u32> =
            numbers.iter().copied().filter(|number| from.sent[*number as usize].to.is_none()).collect();
        let gaps = numbers.windows(2).filter(between).count();
        let ends =
            from.sessions.iter().filter(|session| session.peer == record.identity && session.to.is_some()).count();
        if gaps > ends {
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
    for (identity, blanks) in &record.blanks_received {
        for (len, &count) in blanks.iter().enumerate() {
            let senders = journal.lives.iter().filter(|sender| sender.identity == *identity);
            let sent: u64 = senders.map(|sender| sender.blanks[len]).sum();
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

/// I5: a peer whose link lives has got all that was sent since it began.
fn links_that_live_miss_nothing(journal: &Journal, sender: Life, record: &Record) -> Verdict {
    if record.over {
        return Ok(());
    }
    for session in record.sessions.iter().filter(|session| session.to.is_none()) {
        let Some(receiver) = journal.living(session.peer) else { continue };
        let received = journal.lives[receiver.0 as usize].received.get(&sender);
        let got = received.map_or(0, |numbers| numbers.iter().filter(|number| **number >= session.from).count());
        let sent =
            (session.from..record.sent.len() as u32).filter(|number| record.is_for(*number, session.peer)).count();
        if got != sent {
            let has: BTreeSet<u32> = received.into_iter().flatten().copied().collect();
            let missing = (session.from..record.sent.len() as u32).find(|number| !has.contains(number));
            return broken(
                "I5",
                format!("{receiver:?} got {got} of {sent} messages of {sender:?}; the first missing is {missing:?}"),
            );
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
                    let wanted = (first..last).filter(|number| record.is_for(*number, identity)).count();
                    if got(peer) < wanted {
                        return Some(format!("{peer:?} has {} of the last {wanted} messages of {sender:?}", got(peer)));
                    }
                }
            }
            SendMode::RoundRobin => {
                let all: usize = (0..journal.lives.len() as u32).map(|peer| got(&Life(peer))).sum();
                // What a dying link had handed to the kernel may be lost.
                let quiet = record.disconnects == record.disconnects_before;
                if all < wanted && !peers.is_empty() && quiet {
                    return Some(format!("{all} of the last {wanted} messages of {sender:?} have come to anybody"));
                }
            }
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
