//! A program that pushes to an agent's intake: HTTP/1.1 by hand, so that a test decides every byte.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

/// No answer takes longer.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// Where an intake listens.
#[derive(Debug, Clone)]
pub enum Place {
    Unix(PathBuf),
    Tcp(String),
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    /// The head, lower case.
    pub head: String,
    pub body: Value,
}

/// One connection.
pub struct Connection {
    reader: BufReader<Box<dyn Stream>>,
}

pub trait Stream: Read + Write + Send {}

impl<S: Read + Write + Send> Stream for S {}

impl Place {
    /// Connects; answers are waited for at most a minute.
    pub fn connect(&self) -> io::Result<Connection> {
        let stream: Box<dyn Stream> = match self {
            Self::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(ANSWER_MAX))?;
                stream.set_write_timeout(Some(ANSWER_MAX))?;
                Box::new(stream)
            }
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_read_timeout(Some(ANSWER_MAX))?;
                stream.set_write_timeout(Some(ANSWER_MAX))?;
                Box::new(stream)
            }
        };
        Ok(Connection { reader: BufReader::new(stream) })
    }

    /// Pushes `body` on a connection of its own.
    pub fn push(&self, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Answer> {
        self.connect()?.push(headers, body)
    }
}

impl Connection {
    /// Pushes `body` and reads the answer.
    pub fn push(&mut self, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Answer> {
        let mut request = head("POST /api/v1/metrics/push", headers, body.len()).into_bytes();
        request.extend_from_slice(body);
        self.send(&request)?;
        self.answer()
    }

    /// Writes bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.reader.get_mut().write_all(bytes)
    }

    /// Reads a whole answer.
    pub fn answer(&mut self) -> io::Result<Answer> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if self.reader.read_line(&mut head)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let head = head.to_ascii_lowercase();
        let length = header(&head, "content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        self.reader.read_exact(&mut body)?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok(Answer {
            status: status.ok_or(io::ErrorKind::InvalidData)?,
            body: serde_json::from_slice(&body)?,
            head,
        })
    }

    /// Reads one line.
    pub fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.reader.read_line(&mut line).map(|_| line)
    }

    /// Whether the other side has ended the connection, or does so now.
    pub fn is_ended(&mut self) -> bool {
        !matches!(self.reader.read(&mut [0; 64]), Ok(1..))
    }
}

impl Answer {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    /// Metrics that the answer calls durable.
    pub fn inserted(&self) -> u64 {
        self.body["metrics_inserted"].as_u64().unwrap_or(0)
    }

    /// The slug of an answer that is no 200.
    pub fn error(&self) -> &str {
        self.body["error"].as_str().unwrap_or_default()
    }
}

/// The head of a request with a body of `length` bytes.
pub fn head(target: &str, headers: &[(&str, &str)], length: usize) -> String {
    let mut head = format!("{target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n");
    for (name, value) in headers {
        head = head + name + ": " + value + "\r\n";
    }
    head + "\r\n"
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        (found == name).then_some(value.trim())
    })
}
