//! Agents: whose an id is, what they prove, and what they may report.

use super::*;

fn held() -> Result<(), Refused> {
    Err(Refused::AgentConnected("a".to_owned()))
}

#[test]
fn a_process_that_comes_back_replaces_its_session_at_once() {
    let mut world = World::new();
    world.try_join("a", 1, "one").unwrap();
    world.try_join("a", 2, "one").unwrap();
    let slots: Vec<u32> = world.state.agents().iter().map(|agent| agent.slots).collect();
    assert_eq!(slots, [2]);
    let dropped = Command::DropAgent { agent_id: "a".to_owned(), session: 1 };
    assert_eq!(world.commands.iter().filter(|command| **command == dropped).count(), 1);
    // The end of the old session is no news.
    world.lose("a", 1);
    assert_eq!(world.state.agents().len(), 1);
}

#[test]
fn an_id_belongs_to_its_process_until_the_lease_is_over() {
    let mut world = World::new();
    world.try_join("a", 1, "one").unwrap();
    assert_eq!(world.try_join("a", 1, "two"), held());
    // Nor does the end of the stream give it away, nor asking count as a sign of life.
    world.lose("a", 1);
    world.wait(4 * SECOND);
    assert_eq!(world.try_join("a", 1, "two"), held());
    world.wait(SECOND);
    assert_eq!(world.try_join("a", 1, "two"), held());
    world.now += SECOND / 10;
    assert_eq!(world.try_join("a", 1, "two"), Ok(()));
    assert_eq!(world.try_join("a", 1, "one"), held());
}

#[test]
fn the_process_itself_need_not_wait() {
    let mut world = World::new();
    world.try_join("a", 1, "one").unwrap();
    world.lose("a", 1);
    assert_eq!(world.try_join("a", 1, "one"), Ok(()));
    // Its lease counts from its last session.
    world.wait(9 * SECOND);
    world.lose("a", 2);
    world.wait(4 * SECOND);
    assert_eq!(world.try_join("a", 1, "two"), held());
}

#[test]
fn an_agent_that_closes_its_session_gives_its_id_up() {
    let mut world = World::new();
    world.try_join("a", 1, "one").unwrap();
    world.input(Input::AgentLost { agent_id: "a".to_owned(), session: 1, parting: Parting::Closed });
    assert_eq!(world.try_join("a", 1, "two"), Ok(()));
}

#[test]
fn what_is_kept_of_agents_that_are_gone_is_bounded() {
    let mut world = World::new();
    for name in ["a", "b", "c"] {
        world.join(name, 1);
        world.lose(name, world.sessions);
    }
    world.wait(5 * SECOND);
    assert_eq!(world.state.departed.len(), 3);
    world.wait(SECOND / 2);
    assert_eq!(world.state.departed.len(), 0);
}

#[test]
fn the_time_in_which_nobody_was_listened_to_does_not_end_a_lease() {
    let mut world = World::new();
    world.try_join("a", 1, "one").unwrap();
    world.lose("a", 1);
    world.now += 60 * SECOND;
    world.input(Input::Tick);
    assert_eq!(world.try_join("a", 1, "two"), held());
}

#[test]
fn an_agent_reports_on_its_own_workers_alone() {
    let mut world = World::running(&[1, 1]);
    let (fence, worker) = (world.fence(), world.worker(1));
    let exited = Report::Exited { exit: Exit::Signal(9), stderr_tail: Vec::new() };
    for report in [Report::Started { pid: 7 }, exited] {
        let (fence, worker) = (fence.clone(), worker.clone());
        let refused = world.try_input(Input::AgentReport { agent_id: "a".to_owned(), fence, worker, report });
        let [run_id, worker, agent_id] = ["run", "b/0", "a"].map(str::to_owned);
        assert_eq!(refused, Err(Refused::NotYours { run_id, worker, agent_id }));
    }
    assert_eq!(world.run_state("run"), RunState::Running);
    assert_eq!(world.state.status("run").unwrap().members[1].pid, 101);

    world.news(1, Report::Started { pid: 7 });
    assert_eq!(world.state.status("run").unwrap().members[1].pid, 7);
    // Nor are lines in the log of another's worker its own.
    assert!(matches!(world.state.rank("a", &fence, &worker), Err(Refused::NotYours { .. })));
    assert_eq!(world.state.rank("b", &fence, &worker), Ok(1));
}

#[test]
fn every_worker_gets_a_secret_and_every_group_a_key() {
    let mut world = World::forming(&[2, 1]);
    let assignments = |world: &World| {
        let of_start = |command: &Command| match command {
            Command::StartWorkers(_, start) => start.workers.clone(),
            _ => Vec::new(),
        };
        let all = world.commands.iter().flat_map(of_start);
        all.map(|assignment| (assignment.worker.unwrap().nonce, assignment.secret)).collect::<Vec<_>>()
    };
    let first = assignments(&world);
    let nonces: Vec<&str> = first.iter().map(|(nonce, _)| nonce.as_str()).collect();
    assert_eq!(nonces, ["run/7/1/a/0", "run/7/1/a/1", "run/7/1/b/0"]);
    for (nonce, secret) in &first {
        assert_eq!(*secret, key().worker_secret(nonce));
        assert_eq!(first.iter().filter(|(_, other)| other == secret).count(), 1);
    }
    let keys: Vec<Vec<u8>> = world
        .sent()
        .into_iter()
        .filter_map(|(_, message)| match message {
            worker_down::Message::Assign(assign) => Some(assign.group_key),
            _ => None,
        })
        .collect();
    assert_eq!(keys, vec![key().group_key(&world.fence()).to_vec(); 3]);

    // The next generation's are others.
    let next = Fence { generation: 2, ..world.fence() };
    world.news(0, killed());
    world.news(0, News::Disconnected);
    for rank in [1, 2] {
        world.news(rank, exited(75));
    }
    world.commands.clear();
    world.input(Input::Submitted(RunRecord { generation: 1, ..record("run", 3) }, None, Vec::new()));
    let second = assignments(&world);
    assert_eq!(second.len(), 3);
    assert!(second.iter().all(|(_, secret)| first.iter().all(|(_, before)| before != secret)));
    assert_eq!(world.fence(), next);
    assert_ne!(key().group_key(&next).to_vec(), keys[0]);
}

#[test]
fn secrets_are_of_their_key_and_kind() {
    let (one, other) = (key(), SpawnKey::new([4; 32]));
    let fence = Fence { run_id: "run".to_owned(), incarnation: 7, generation: 1 };
    assert_ne!(one.worker_secret("n"), other.worker_secret("n"));
    assert_ne!(one.group_key(&fence), other.group_key(&fence));
    for other in [
        Fence { run_id: "ruin".to_owned(), ..fence.clone() },
        Fence { incarnation: 8, ..fence.clone() },
        Fence { generation: 2, ..fence.clone() },
        Fence { incarnation: 1, generation: 7, ..fence.clone() },
    ] {
        assert_ne!(one.group_key(&other), one.group_key(&fence), "{other:?}");
    }
    // A nonce of the same bytes as a group's identity does not give its key.
    let counts = [7u64.to_le_bytes(), 1u64.to_le_bytes()].concat();
    let nonce = String::from_utf8([counts, b"run".to_vec()].concat()).unwrap();
    assert_ne!(one.worker_secret(&nonce)[..], one.group_key(&fence)[..16]);
}

#[test]
fn no_secret_is_printed() {
    let mut world = World::new();
    world.try_join("a", 1, "hush").unwrap();
    world.submit("run", 1);
    let printed = format!("{:?} {:?}", world.state, world.state.agents());
    let worker = key().worker_secret("run/7/1/a/0");
    for secret in [&b"hush"[..], &[3; 32], &worker] {
        // As byte strings are printed by `{:?}`, without the brackets.
        let bytes = format!("{secret:?}");
        assert!(!printed.contains(bytes.trim_matches(['[', ']'])), "{bytes} in {printed}");
    }
    assert!(printed.contains("SpawnKey(..)"));
}
