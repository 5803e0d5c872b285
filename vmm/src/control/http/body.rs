//! Bodies of answers: one piece, or events for as long as there are some.

use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use hyper::body::{Body, Bytes, Frame, SizeHint};

use super::super::api::{self, Event};
use super::super::hub::Subscription;
use super::stream::Exchange;

/// A body.
pub(super) struct Answer {
    content: Content,
    /// Told when hyper has all of it.
    exchange: Rc<Exchange>,
}

pub(super) enum Content {
    /// One piece.
    Whole(Bytes),
    /// Events, after a comment that has the head sent at once.
    Events(Subscription, bool),
}

impl Answer {
    pub(super) fn new(content: Content, exchange: Rc<Exchange>) -> Self {
        Self { content, exchange }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.exchange.close();
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let bytes = match &mut self.content {
            Content::Whole(bytes) if bytes.is_empty() => return Poll::Ready(None),
            Content::Whole(bytes) => std::mem::take(bytes),
            Content::Events(_, begun) if !*begun => {
                *begun = true;
                Bytes::from_static(b": events of this machine\n\n")
            }
            Content::Events(events, _) => match ready!(events.poll_next(context)) {
                Some(event) => Bytes::from(text(&event)),
                None => return Poll::Ready(None),
            },
        };
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(&self.content, Content::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Content::Events(..) => SizeHint::default(),
        }
    }
}

/// An event in the form of server-sent events (HTML, section 9.2.6). JSON has
/// no line breaks of its own.
fn text(event: &Event) -> Vec<u8> {
    let mut text = format!("event: {}\ndata: ", event.name()).into_bytes();
    text.extend(api::json(event));
    text.extend(b"\n\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::Lost;

    #[test]
    fn events_are_one_line_of_data_each() {
        let text = text(&Event::Lost(Lost { lost: 3 }));
        assert_eq!(text, b"event: lost\ndata: {\"event\":\"lost\",\"lost\":3}\n\n");
    }
}
