//! The other end of an HTTP connection, as plain as can be.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use serde_json::Value;

use crate::machine::{LIMIT, Machine};

pub(crate) struct Browser(BufReader<UnixStream>);

/// An answer.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) text: String,
}

impl Page {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        serde_json::from_str(&self.text).unwrap()
    }

    /// The message of an error.
    #[track_caller]
    pub(crate) fn refused(&self, status: u16, kind: &str) -> String {
        let json = self.json();
        assert_eq!((self.status, json["error"]["kind"].as_str()), (status, Some(kind)), "{self:?}");
        json["error"]["message"].as_str().unwrap().to_owned()
    }
}

impl Machine {
    pub(crate) fn browse(&self) -> Browser {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        Browser(BufReader::new(stream))
    }

    pub(crate) fn get(&self, path: &str) -> Page {
        self.browse().ask("GET", path, "")
    }

    pub(crate) fn post(&self, path: &str, body: &str) -> Page {
        self.browse().ask("POST", path, body)
    }
}

impl Browser {
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.get_mut().write_all(bytes.as_ref()).unwrap();
    }

    /// Sends what the server takes: it may have hung up.
    pub(crate) fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.0.get_mut().write_all(bytes.as_ref()).is_ok()
    }

    pub(crate) fn close_write(&self) {
        self.0.get_ref().shutdown(Shutdown::Write).unwrap();
    }

    pub(crate) fn request(&mut self, method: &str, path: &str, body: &str) {
        let length = body.len();
        self.send(format!("{method} {path} HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{body}"));
    }

    pub(crate) fn ask(&mut self, method: &str, path: &str, body: &str) -> Page {
        self.request(method, path, body);
        self.page().expect("an answer")
    }

    /// The next answer, if there is one. Its body is left where it goes on for
    /// ever.
    pub(crate) fn page(&mut self) -> Option<Page> {
        let line = self.line()?;
        let status = line.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap();
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(": ") else { break };
            headers.push((name.to_lowercase(), value.to_owned()));
        }
        let mut page = Page { status, headers, text: String::new() };
        if let Some(length) = page.header("content-length") {
            let mut body = vec![0; length.parse().unwrap()];
            self.0.read_exact(&mut body).unwrap();
            page.text = String::from_utf8(body).unwrap();
        }
        Some(page)
    }

    /// A line without its end; `None` at the end of everything.
    pub(crate) fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(line.trim_end_matches(['\r', '\n']).to_owned()),
            // Hung up on with bytes of ours unread (unix_release_sock,
            // net/unix/af_unix.c).
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// The next event of a stream: its name and data.
    pub(crate) fn event(&mut self) -> Option<(String, Value)> {
        let mut name = String::new();
        loop {
            // Lines of the chunked coding and comments are passed over.
            let line = self.line()?;
            if let Some(event) = line.strip_prefix("event: ") {
                name = event.to_owned();
            } else if let Some(data) = line.strip_prefix("data: ") {
                return Some((name, serde_json::from_str(data).unwrap()));
            } else if line == "0" {
                return None;
            }
        }
    }
}
