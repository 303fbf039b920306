//! Prost messages with buffers that suit small ones.

use std::fmt;
use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::{ProstDecoder, ProstEncoder};

/// A buffer's first size, one each for a request and its answer: most of them are smaller. tonic's own 8 KiB were half
/// of what a get allocated. `bytes` remembers, from this size on, how large a buffer was that a stream goes on with.
const BUFFER_BYTES: usize = 1024;

/// Of a stream, so much is encoded before it is sent; tonic's default.
const YIELD_BYTES: usize = 32 * 1024;

/// tonic's codec of prost messages, with other buffers.
pub struct ProstCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for ProstCodec<T, U> {
    fn default() -> ProstCodec<T, U> {
        ProstCodec(PhantomData)
    }
}

impl<T, U> fmt::Debug for ProstCodec<T, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProstCodec")
    }
}

impl<T, U> Codec for ProstCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> ProstEncoder<T> {
        ProstEncoder::new(BufferSettings::new(BUFFER_BYTES, YIELD_BYTES))
    }

    fn decoder(&mut self) -> ProstDecoder<U> {
        ProstDecoder::new(BufferSettings::new(BUFFER_BYTES, YIELD_BYTES))
    }
}
