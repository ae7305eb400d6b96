//! The subscriber processes as the publisher sees them: started together, heard over their standard output, killed and
//! reaped when this value goes. A thread per child reads its lines; everything else happens on the caller's thread.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::report::{Line, Report};

/// How long a subscriber that has reported may take to exit.
const EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// All subscriber processes.
pub(crate) struct Children {
    subscribers: Vec<Subscriber>,
    news: Receiver<(usize, News)>,
    /// Sum of the subscribers' `delivered`.
    delivered_total: u64,
}

struct Subscriber {
    process: Child,
    /// Ticks that it had when it last told.
    delivered: u64,
    report: Option<Report>,
}

enum News {
    Line(Line),
    /// A line that is none of ours.
    Nonsense(String),
    /// Its standard output has ended.
    Ended,
}

impl Children {
    /// Starts `count` copies of this program with `arguments`.
    pub(crate) fn spawn(count: u32, arguments: &[String]) -> Result<Self> {
        let program = std::env::current_exe().context("cannot find this program's own file to start subscribers")?;
        let (sender, news) = channel();
        let mut children = Self { subscribers: Vec::with_capacity(count as usize), news, delivered_total: 0 };
        for index in 0..count as usize {
            let mut process = Command::new(&program)
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .with_context(|| format!("cannot start subscriber {index}: try fewer --subscribers"))?;
            let stdout = process.stdout.take();
            // From here on `children` owns the process, and ends it should a later one not start.
            children.subscribers.push(Subscriber { process, delivered: 0, report: None });
            let (stdout, sender) = (stdout.context("the subscriber's output was not piped")?, sender.clone());
            thread::Builder::new()
                .name(format!("subscriber-{index}"))
                .spawn(move || read_lines(index, stdout, &sender))
                .context("cannot start a thread")?;
        }
        Ok(children)
    }

    /// Subscribers.
    pub(crate) fn len(&self) -> usize {
        self.subscribers.len()
    }

    /// Deliveries that the subscribers have told of so far, together.
    pub(crate) fn delivered(&self) -> u64 {
        self.delivered_total
    }

    /// Takes in what the subscribers have told since; an error when one of them ended without its report. Cheap when
    /// there is nothing new.
    pub(crate) fn observe(&mut self) -> Result<()> {
        loop {
            let (index, news) = match self.news.try_recv() {
                Ok(news) => news,
                // Disconnected: all have ended, and each end was seen.
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return Ok(()),
            };
            let subscriber = &mut self.subscribers[index];
            let delivered = match news {
                News::Line(Line::Progress(delivered)) => delivered,
                News::Line(Line::Report(report)) => {
                    let delivered = report.delivered;
                    subscriber.report = Some(*report);
                    delivered
                }
                News::Nonsense(why) => bail!("subscriber {index} said something unexpected: {why}"),
                News::Ended if subscriber.report.is_some() => continue,
                News::Ended => {
                    let status = subscriber.process.wait().context("cannot wait for a subscriber")?;
                    bail!("subscriber {index} ended before its report ({status}): what it said is above");
                }
            };
            self.delivered_total += delivered.saturating_sub(subscriber.delivered);
            subscriber.delivered = subscriber.delivered.max(delivered);
        }
    }

    /// Whether every subscriber has reported.
    pub(crate) fn all_reported(&self) -> bool {
        self.subscribers.iter().all(|subscriber| subscriber.report.is_some())
    }

    /// The subscribers that have not reported, for a message.
    pub(crate) fn silent(&self) -> String {
        let silent = self.subscribers.iter().enumerate().filter(|(_, subscriber)| subscriber.report.is_none());
        silent.map(|(index, _)| index.to_string()).collect::<Vec<_>>().join(", ")
    }

    /// Waits until all have exited (those that do not are killed), and hands out their reports.
    pub(crate) fn into_reports(mut self) -> Result<Vec<Report>> {
        let deadline = Instant::now() + EXIT_TIMEOUT;
        for (index, subscriber) in self.subscribers.iter_mut().enumerate() {
            loop {
                if let Some(status) = subscriber.process.try_wait().context("cannot wait for a subscriber")? {
                    if !status.success() {
                        bail!("subscriber {index} reported and then failed ({status})");
                    }
                    break;
                }
                if Instant::now() >= deadline {
                    bail!("subscriber {index} reported and did not exit within {} s", EXIT_TIMEOUT.as_secs());
                }
                thread::sleep(Duration::from_millis(2));
            }
        }
        Ok(self.subscribers.iter_mut().filter_map(|subscriber| subscriber.report.take()).collect())
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        for subscriber in &mut self.subscribers {
            // Both fail only for a process that has ended already.
            let _ = subscriber.process.kill();
            let _ = subscriber.process.wait();
        }
    }
}

fn read_lines(index: usize, stdout: ChildStdout, sender: &Sender<(usize, News)>) {
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        let news = Line::parse(&line).map_or_else(|error| News::Nonsense(format!("{error:#}")), News::Line);
        if sender.send((index, news)).is_err() {
            return;
        }
    }
    // Fails when the publisher has stopped listening, which is fine: it has what it needs.
    let _ = sender.send((index, News::Ended));
}
