//! As much of Redis' protocol (RESP2) as the load needs: SET and GET, several in one write.

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::Result;

pub struct Redis {
    stream: TcpStream,
    read: BytesMut,
    written: Vec<u8>,
}

impl Redis {
    pub async fn connect(address: &str) -> Result<Redis> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Redis { stream, read: BytesMut::new(), written: Vec::new() })
    }

    fn command(&mut self, words: &[&[u8]]) {
        self.written.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
        for word in words {
            self.written.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            self.written.extend_from_slice(word);
            self.written.extend_from_slice(b"\r\n");
        }
    }

    pub async fn set(&mut self, records: &[(Bytes, Bytes)]) -> Result<()> {
        self.written.clear();
        for (key, value) in records {
            self.command(&[b"SET", key, value]);
        }
        self.stream.write_all(&self.written).await?;
        for _ in records {
            let line = self.line().await?;
            if line != "+OK" {
                return Err(format!("redis answers {line:?}").into());
            }
        }
        Ok(())
    }

    /// The value's length.
    pub async fn get(&mut self, key: &[u8]) -> Result<Option<usize>> {
        self.written.clear();
        self.command(&[b"GET", key]);
        self.stream.write_all(&self.written).await?;
        let line = self.line().await?;
        match line.strip_prefix('$').map(str::parse::<i64>) {
            Some(Ok(-1)) => Ok(None),
            Some(Ok(length)) => {
                let length = usize::try_from(length)?;
                while self.read.len() < length + 2 {
                    self.more().await?;
                }
                self.read.advance(length + 2);
                Ok(Some(length))
            }
            _ => Err(format!("redis answers {line:?}").into()),
        }
    }

    async fn line(&mut self) -> Result<String> {
        loop {
            if let Some(end) = self.read.windows(2).position(|two| two == b"\r\n") {
                let line = String::from_utf8_lossy(&self.read[..end]).into_owned();
                self.read.advance(end + 2);
                return Ok(line);
            }
            self.more().await?;
        }
    }

    async fn more(&mut self) -> Result<()> {
        match self.stream.read_buf(&mut self.read).await? {
            0 => Err("redis closed the connection".into()),
            _ => Ok(()),
        }
    }
}
