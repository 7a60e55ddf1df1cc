//! Flows of datagrams that are one question and its answer, as DNS has them: they are over with the answer, and are
//! not kept as long as a conversation ([0025](../../../../docs/decisions/0025-a-question-that-was-answered-is-soon-over.md)).

use std::time::Duration;

/// How long an exchange is kept that has been answered, in silence. Linux's NAT keeps a mapping as long that is no
/// stream (`nf_conntrack_udp_timeout`).
pub(super) const LIFETIME: Duration = Duration::from_secs(30);
/// Where resolvers are asked (RFC 1035).
const DNS: u16 = 53;
/// Questions that belong to one look-up of a name: A and AAAA, each repeated once.
const LOOK_UP: u8 = 4;

/// The datagrams of a flow, as far as they have to be counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Exchange {
    questions: u8,
    answers: u8,
}

impl Exchange {
    /// The guest has sent so many datagrams.
    pub(super) fn ask(&mut self, datagrams: usize) {
        self.questions = self.questions.saturating_add(u8::try_from(datagrams).unwrap_or(u8::MAX));
    }

    /// So many have come for it.
    pub(super) fn answer(&mut self, datagrams: usize) {
        self.answers = self.answers.saturating_add(u8::try_from(datagrams).unwrap_or(u8::MAX));
    }

    /// Whether no more is to be expected than has passed, of a flow with that port of its remote end. With port 53 the
    /// answer need not have come.
    pub(super) fn is_over(self, port: u16) -> bool {
        let Self { questions, answers } = self;
        if port == DNS {
            questions <= LOOK_UP && answers <= questions
        } else {
            questions == 1 && answers == 1
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_over(port: u16, questions: usize, answers: usize) -> bool {
        let mut exchange = Exchange::default();
        exchange.ask(questions);
        exchange.answer(answers);
        exchange.is_over(port)
    }

    #[test]
    fn one_question_with_its_answer_is_over_and_anything_more_goes_on() {
        assert!(is_over(443, 1, 1));
        for (questions, answers) in [(1, 0), (1, 2), (2, 1), (2, 2), (1000, 1), (1, 1000)] {
            assert!(!is_over(443, questions, answers), "{questions} and {answers}");
        }
    }

    #[test]
    fn a_look_up_of_a_name_is_over_whether_it_was_answered_or_not() {
        for (questions, answers) in [(1, 0), (1, 1), (2, 2), (4, 0), (4, 4)] {
            assert!(is_over(DNS, questions, answers), "{questions} and {answers}");
        }
        for (questions, answers) in [(1, 2), (5, 5), (300, 1)] {
            assert!(!is_over(DNS, questions, answers), "{questions} and {answers}");
        }
    }
}
