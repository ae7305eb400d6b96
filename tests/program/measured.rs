//! `bench`, short: it checks its own messages, so that a run that ends well has measured what it says.

use serde_json::Value;

use super::process::{Program, folder, run};

const SHORT: [&str; 5] = ["--repeats", "3", "--seconds", "0.05", "--json"];

fn bench(arguments: &[&str]) -> Value {
    let outcome = run(&[&["bench"], arguments, &SHORT].concat());
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    serde_json::from_slice(&outcome.stdout).expect("JSON")
}

fn is_drawing(text: &str) -> bool {
    text.starts_with("<svg ") && text.ends_with("</svg>\n") && !text.contains("NaN") && !text.contains("inf")
}

#[test]
fn rates_are_measured_and_drawn() {
    let plot = folder("bench").join("pair.svg");
    let pair = bench(&["pair", "--size", "64,4096", "--plot", plot.to_str().expect("plain")]);
    let rows = pair["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 2);
    for row in rows {
        assert_eq!(row["repeats"].as_array().expect("repeats").len(), 3);
        assert!(row["least"].as_f64() <= row["messages_per_s"].as_f64() && row["least"].as_f64() > Some(0.0), "{row}");
    }
    assert!(is_drawing(&std::fs::read_to_string(plot).expect("drawn")));
    let fan = bench(&["fan-out", "--subscribers", "2", "--engine", "sharded", "--backend", "poll"]);
    assert_eq!((&fan["engine"], &fan["backend"]), (&"sharded".into(), &"poll".into()));
    assert_eq!(fan["rows"][0]["subscribers"], 2);
}

#[test]
fn times_are_measured_and_drawn() {
    let plot = folder("times").join("latency.html");
    for engine in ["inline", "sharded"] {
        let both = bench(&["latency", "--rate", "2000", "--engine", engine, "--plot", plot.to_str().expect("plain")]);
        for row in both["rows"].as_array().expect("rows") {
            let median = |name: &str| row[name]["median"].as_f64().expect("a number");
            assert!(row["samples"].as_u64() >= Some(3), "{row}");
            assert!(0.0 < median("p50_us") && median("p50_us") <= median("p99_us"), "{row}");
        }
        let page = std::fs::read_to_string(&plot).expect("drawn");
        assert!(
            page.starts_with("<!doctype html>") && page.contains("<polyline") && page.contains("one way at 2000/s")
        );
    }
}

#[test]
fn another_process_may_be_the_other_end() {
    let mut echo = Program::start(&["echo", "-b", "127.0.0.1:0"]);
    let address = echo.address();
    let measured = bench(&["latency", "--connect", &address, "--rate", "2000", "--size", "100"]);
    let names: Vec<_> = measured["rows"].as_array().expect("rows").iter().map(|row| row["name"].as_str()).collect();
    assert_eq!(names, [Some("there and back, 100 B"), Some("2000/s and back, 100 B")]);
    echo.signal("INT");
    assert_eq!(echo.end().code(), 0);
}

/// Names of threads of a process with the cores that they may use.
#[cfg(target_os = "linux")]
fn cores_of_threads(pid: u32) -> Vec<(String, String)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("a process");
    let status = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("status")).ok();
    let field = |status: &str, name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("there");
        line.trim().to_owned()
    };
    tasks
        .filter_map(|task| status(task.expect("a thread")))
        .map(|status| (field(&status, "Name:"), field(&status, "Cpus_allowed_list:")))
        .collect()
}

#[test]
#[cfg(target_os = "linux")]
fn what_drives_a_socket_spins_on_the_core_that_it_is_given() {
    use super::{common::eventually, watched::ask};
    let own = &cores_of_threads(std::process::id())[0].1;
    let core: String = own.chars().take_while(char::is_ascii_digit).collect();
    let mut first = None;
    for (engine, driver) in [("inline", "aiomsg"), ("sharded", "aiomsg-0")] {
        let arguments = ["echo", "-b", "127.0.0.1:0", "--engine", engine, "--pin", &core, "--spin", "1000000"];
        let mut echo = Program::start(&[&arguments[..], &["--metrics", ":0"]].concat());
        let address = echo.address();
        for (name, cores) in cores_of_threads(echo.pid()) {
            let expected = if name == driver { &core } else { own };
            assert!(&cores == expected || engine == "inline", "{engine}: {name} runs on {cores}");
        }
        assert!(cores_of_threads(echo.pid()).contains(&(driver.to_owned(), core.clone())), "{engine}");
        let counters = echo.said("counters at http://").trim_end_matches("/metrics").to_owned();
        eventually("it looks for work", || {
            let text = ask(&counters, "GET /metrics HTTP/1.0\r\n\r\n");
            let spins = text.lines().find_map(|line| line.strip_prefix("aiomsg_shard_spins_total{shard=\"0\"} "));
            spins.expect("told").parse::<u64>().expect("a number") > 1000
        });
        first.get_or_insert((echo, address));
    }
    let (_echo, address) = first.expect("started");
    let cores = format!("{core},{core}");
    let measured = bench(&["latency", "--connect", &address, "--rate", "100", "--spin", "20", "--pin", &cores]);
    assert_eq!((&measured["spin_us"], &measured["cores"][0]), (&20.into(), &core.parse::<u64>().expect("one").into()));
    bench(&["pair", "--size", "64", "--spin", "20", "--pin", &core, "--engine", "sharded"]);
    let nowhere = run(&["bench", "pair", "--pin", "1023"]);
    assert_eq!(nowhere.code(), 1);
    assert!(nowhere.stderr.contains("cannot stay on core 1023: Cpus_allowed_list"), "{}", nowhere.stderr);
}

#[test]
fn the_table_is_for_people() {
    let outcome = run(&["bench", "latency", "--repeats", "1", "--seconds", "0.05"]);
    let text = String::from_utf8_lossy(&outcome.stdout);
    for word in ["microseconds", "p99.99", "there and back, 64 B", "one way at 10000/s"] {
        assert!(text.contains(word), "{word} is missing in\n{text}");
    }
    let refused = run(&["bench", "pair", "--size", "8"]);
    assert_eq!(refused.code(), 2);
    assert!(refused.stderr.contains("a number from 16"), "{}", refused.stderr);
}
