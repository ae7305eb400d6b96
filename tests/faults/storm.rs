//! A restart storm: a publisher's process and one with two hundred sockets that dial it are killed with -9 and started anew,
//! now the one, now the other, now both, in the midst of traffic both ways.
//!
//! Both publish numbers, and the publisher sends each number that it gets back to where it came from. A number has the count of
//! starts of its process above [`START_BITS`], so what arrives at a socket rises through all restarts: a number that does not
//! came twice or out of order. Whoever is told that all is well again has heard from everybody, both ways, after the last restart.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use aiomsg_uring::{Backend, Engine, Event, Identity, SendMode, Socket, blocking};

use crate::child::{Child, tell, waits};
use crate::common::{free_port, say_loudly};
use crate::scale;

on_both!([restarts_under_traffic]);

const DIALLERS: usize = 200;
const START_BITS: u32 = 32;
/// Of what the publisher publishes, and of what it sends back.
const NEWS: u8 = b'n';
const ECHO: u8 = b'e';
/// Between two rounds of sending: 8,000 messages a second arrive at the diallers, 2,000 at the publisher.
const PAUSE: Duration = Duration::from_millis(50);
const ECHO_EVERY: u64 = 2;
/// How far from its even share of delays a bin of 10 ms may be before they count as in step.
const CROWDED: usize = 2;

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Publisher,
    Diallers,
    Both,
}

fn restarts_under_traffic(backend: Backend) {
    use Victim::{Both, Diallers, Publisher};
    let endpoint = format!("127.0.0.1:{}", free_port());
    let publisher = |start: u64| Child::start(backend, &format!("storm-publisher {endpoint} {start}"));
    let diallers = |start: u64| Child::start(backend, &format!("storm-diallers {endpoint} {start}"));
    // Counts of all starts; the publisher's last.
    let (mut start, mut serving) = (0, 0);
    let (mut one, mut many) = (publisher(serving), diallers(start));
    let mut delays = wait_until_met(&mut many, serving);
    for victim in [Publisher, Publisher, Diallers, Both, Publisher, Both].repeat(scale()) {
        start += 1;
        if victim != Diallers {
            serving = start;
        }
        // Killed when dropped, and gone before the next one starts.
        match victim {
            Publisher => {
                drop(one);
                one = publisher(start);
            }
            Diallers => {
                drop(many);
                many = diallers(start);
            }
            Both => {
                drop((one, many));
                // Those who dial are there first.
                (many, one) = (diallers(start), publisher(start));
            }
        }
        delays += wait_until_met(&mut many, serving);
    }
    say_loudly(&format!("{start} restarts with {DIALLERS} diallers on {backend:?}: all back, {delays} delays chosen"));
}

/// Until all diallers have heard of and from this start of the publisher; how many delays they chose meanwhile.
fn wait_until_met(diallers: &mut Child, serving: u64) -> u64 {
    let mut sum = 0;
    loop {
        let [met, delays] = diallers.numbers()[..] else { panic!("two numbers") };
        sum += delays;
        if met >= serving {
            return sum;
        }
    }
}

fn value(start: u64, count: u64) -> u64 {
    start << START_BITS | count
}

fn socket(engine: &Engine, identity: Identity) -> blocking::Socket {
    let builder = Socket::builder().engine(engine).send_mode(SendMode::Publish).identity(identity);
    builder.build_blocking().expect("a socket")
}

/// A child that publishes, and sends back what it gets, until it is killed.
pub(crate) fn publisher(endpoint: &str, start: &str) {
    let start: u64 = start.parse().expect("a number");
    let engine = Engine::new().expect("an engine");
    let socket = socket(&engine, Identity::from([0xff; 16]));
    socket.bind(endpoint).expect("bound");
    thread::scope(|scope| {
        scope.spawn(|| {
            while let Ok((from, message)) = socket.recv_identity() {
                // Gone since, maybe.
                socket.send_to(from, [&[ECHO], &start.to_be_bytes()[..], &message].concat()).ok();
            }
        });
        scope.spawn(|| {
            for count in 1.. {
                socket.send([&[NEWS], &value(start, count).to_be_bytes()[..]].concat()).expect("sent");
                thread::sleep(PAUSE);
            }
        });
        end_with_the_parent();
    });
}

fn end_with_the_parent() -> ! {
    while waits() {}
    std::process::exit(0)
}

/// What a dialler has got.
struct Dialler {
    socket: blocking::Socket,
    last_news: u64,
    last_echo: u64,
    /// The publisher's last start that it has had an echo of.
    heard: Option<u64>,
}

impl Dialler {
    fn take(&mut self, message: &[u8]) {
        let number = |at: usize| u64::from_be_bytes(message[at..at + 8].try_into().expect("a number"));
        match message[0] {
            NEWS => {
                let (value, last) = (number(1), self.last_news);
                let is_next = last == 0 || value == last + 1 || value >> START_BITS > last >> START_BITS;
                assert!(is_next, "published: {value:#x} after {last:#x}");
                self.last_news = value;
            }
            ECHO => {
                let (value, last) = (number(9), self.last_echo);
                assert!(value > last, "sent back: {value:#x} after {last:#x}");
                self.last_echo = value;
                self.heard = Some(number(1));
            }
            _ => panic!("{message:?}"),
        }
    }

    /// The publisher's last start that it has heard of and from.
    fn met(&self) -> Option<u64> {
        self.heard.filter(|heard| self.last_news >> START_BITS >= *heard && self.last_news > 0)
    }
}

/// A child with all the diallers, until it is killed. It tells of each start of the publisher that all have met.
pub(crate) fn diallers(endpoint: &str, start: &str) {
    let start: u64 = start.parse().expect("a number");
    let engine = Engine::new().expect("an engine");
    let mut diallers: Vec<Dialler> = (0..DIALLERS)
        .map(|number| {
            // The same in each of its lives.
            let socket = socket(&engine, Identity::from([number as u8; 16]));
            Dialler { socket, last_news: 0, last_echo: 0, heard: None }
        })
        .collect();
    diallers.iter().for_each(|dialler| dialler.socket.connect(endpoint).expect("connecting"));
    thread::spawn(|| end_with_the_parent());
    // Delays by the attempt that they are for.
    let mut delays: BTreeMap<u32, Vec<Duration>> = BTreeMap::new();
    let mut told = None;
    for round in 1.. {
        let until = Instant::now() + PAUSE;
        for dialler in &mut diallers {
            if round % ECHO_EVERY == 0 {
                dialler.socket.send(&value(start, round).to_be_bytes()).expect("sent");
            }
            while let Ok(message) = dialler.socket.try_recv() {
                dialler.take(&message);
            }
            while let Some(event) = dialler.socket.try_event() {
                if let Event::Reconnecting { attempt, delay, .. } = event {
                    delays.entry(attempt).or_default().push(delay);
                }
            }
        }
        let met = diallers.iter().map(Dialler::met).min().flatten();
        if met > told {
            told = met;
            tell(format!("{} {}", met.unwrap_or(0), delays.values().map(Vec::len).sum::<usize>()));
            std::mem::take(&mut delays).values().for_each(|delays| expect_spread(delays));
        }
        thread::sleep(until.saturating_duration_since(Instant::now()));
    }
}

/// Not in step: different delays, which fill the bins between the shortest and the longest evenly enough.
fn expect_spread(delays: &[Duration]) {
    // Too few to say something.
    if delays.len() < DIALLERS / 2 {
        return;
    }
    let different = delays.iter().collect::<BTreeSet<_>>().len();
    assert!(different > delays.len() * 9 / 10, "{different} different ones of {}", delays.len());
    let mut bins: BTreeMap<u128, usize> = BTreeMap::new();
    delays.iter().for_each(|delay| *bins.entry(delay.as_millis() / 10).or_default() += 1);
    let fullest = bins.values().max().expect("there are some");
    assert!(bins.len() >= 5 && *fullest <= delays.len() / 5 * CROWDED, "delays by 10 ms: {bins:?}");
}
