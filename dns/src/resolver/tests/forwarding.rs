//! Questions that others are asked.

use super::*;

/// Asks for example.com and answers the resolver with its first ask.
fn forwarded() -> (Resolver<u32>, u32, Vec<u8>) {
    let mut resolver = resolver();
    let message = query(0x1234, "Example.com", kind::A);
    resolver.handle_query(Duration::ZERO, 1, &OPEN, Via::Udp, &message);
    let Some(Action::Ask { exchange, message, via: Via::Udp, .. }) = resolver.poll_action() else {
        panic!("not forwarded")
    };
    (resolver, exchange, message)
}

/// What an honest resolver answers to `message`.
fn reply_to(message: &[u8], address: [u8; 4]) -> Vec<u8> {
    let mut reply = message.to_vec();
    reply[2] |= 0x80;
    reply[7] = 1;
    reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    reply.extend_from_slice(&address);
    reply
}

fn never(_: IpAddr) -> bool {
    false
}

fn hear(resolver: &mut Resolver<u32>, exchange: u32, reply: &[u8]) -> Vec<Action<u32>> {
    resolver.handle_reply(Duration::ZERO, exchange, Reply::Message(reply), &mut never);
    std::iter::from_fn(|| resolver.poll_action()).collect()
}

#[test]
fn a_foreign_name_is_forwarded_and_answered_under_the_askers_id_and_case() {
    let (mut resolver, exchange, message) = forwarded();
    let actions = hear(&mut resolver, exchange, &reply_to(&message, [192, 0, 2, 9]));
    let [Action::Forget { .. }, Action::Answer { asker: 1, message }] = actions.as_slice() else {
        panic!("{actions:?}")
    };
    assert_eq!(message[..2], [0x12, 0x34]);
    assert_eq!(&message[12..25], b"\x07Example\x03com\0");
    assert_eq!(texts(&Message::from_vec(message).unwrap()), ["192.0.2.9"]);
    assert_eq!(resolver.poll_timeout(), None);
}

#[test]
fn forged_replies_are_not_believed() {
    let (mut resolver, exchange, message) = forwarded();
    let honest = reply_to(&message, [192, 0, 2, 9]);
    let change = |at: usize, by: u8| {
        let mut forged = honest.clone();
        forged[at] ^= by;
        forged
    };
    let forgeries = [change(0, 1), change(1, 1), change(2, 0x80), change(13, 0x01), change(5, 2)];
    for forged in forgeries.iter().chain([&honest[..20].to_vec(), &Vec::new()]) {
        assert_eq!(hear(&mut resolver, exchange, forged), []);
    }
    assert_eq!(hear(&mut resolver, exchange + 1, &honest), []);
    assert_eq!(hear(&mut resolver, exchange, &honest).len(), 2);
}

#[test]
fn another_case_of_letters_or_a_cut_reply_is_asked_again_over_tcp() {
    for (at, by) in [(13, 0x20), (2, 0x02)] {
        let (mut resolver, exchange, message) = forwarded();
        let mut reply = reply_to(&message, [192, 0, 2, 9]);
        reply[at] ^= by;
        let actions = hear(&mut resolver, exchange, &reply);
        assert!(
            matches!(
                actions.as_slice(),
                [Action::Forget { .. }, Action::Ask { via: Via::Tcp, .. }]
            ),
            "{actions:?}"
        );
    }
}

#[test]
fn a_silent_resolver_is_joined_by_the_next_and_the_wait_has_an_end() {
    let (mut resolver, _, _) = forwarded();
    let mut asked = vec![];
    let mut now = Duration::ZERO;
    let end = loop {
        now = resolver.poll_timeout().expect("a question under way has a time-out").max(now);
        resolver.handle_timeout(now);
        while let Some(action) = resolver.poll_action() {
            match action {
                Action::Ask { resolver, .. } => asked.push((now.as_millis(), resolver)),
                Action::Answer { message, .. } => {
                    asked.push((now.as_millis(), "0.0.0.0:0".parse().unwrap()));
                    assert_eq!(message[3] & 0xf, 2, "SERVFAIL");
                }
                Action::Forget { .. } => {}
            }
        }
        if resolver.poll_timeout().is_none() {
            break now;
        }
    };
    assert_eq!(asked[0], (400, "192.0.2.2:53".parse().unwrap()));
    assert_eq!(end, LIFETIME);
    assert!(resolver.exchanges.is_empty() && resolver.by_question.is_empty());
}

#[test]
fn dead_resolvers_are_servfail_at_once() {
    let (mut resolver, exchange, _) = forwarded();
    resolver.handle_reply(Duration::ZERO, exchange, Reply::Failed, &mut never);
    let second = std::iter::from_fn(|| resolver.poll_action()).find_map(|action| match action {
        Action::Ask { exchange, resolver, .. } => Some((exchange, resolver)),
        _ => None,
    });
    let (exchange, asked) = second.expect("the next resolver is asked");
    assert_eq!(asked, "192.0.2.2:53".parse().unwrap());
    resolver.handle_reply(Duration::ZERO, exchange, Reply::Failed, &mut never);
    let actions: Vec<_> = std::iter::from_fn(|| resolver.poll_action()).collect();
    let [Action::Forget { .. }, Action::Answer { message, .. }] = actions.as_slice() else {
        panic!("{actions:?}")
    };
    assert_eq!(message[3] & 0xf, 2);
}

#[test]
fn equal_questions_share_one_exchange() {
    let mut resolver = resolver();
    for asker in 0..100 {
        let name = if asker % 2 == 0 { "example.com" } else { "EXAMPLE.com" };
        let message = query(u16::try_from(asker).unwrap(), name, kind::A);
        resolver.handle_query(Duration::ZERO, asker, &OPEN, Via::Udp, &message);
    }
    let asks: Vec<_> = std::iter::from_fn(|| resolver.poll_action()).collect();
    let [Action::Ask { exchange, message, .. }] = asks.as_slice() else { panic!("{asks:?}") };
    let actions = hear(&mut resolver, *exchange, &reply_to(message, [192, 0, 2, 9]));
    assert_eq!(actions.len(), 101);
}

#[test]
fn an_answer_that_is_too_long_for_its_asker_is_cut_with_the_bit_set() {
    let (mut resolver, exchange, message) = forwarded();
    let mut reply = reply_to(&message, [192, 0, 2, 1]);
    for host in 2..60 {
        reply[7] += 1;
        reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, host]);
    }
    let actions = hear(&mut resolver, exchange, &reply);
    let Some(Action::Answer { message, .. }) = actions.last() else { panic!("{actions:?}") };
    assert!(message.len() <= 512);
    let cut = Message::from_vec(message).unwrap();
    assert!(cut.metadata.truncation && cut.answers.is_empty());
}
