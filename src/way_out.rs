//! Ways out that messages of several layers name.

/// For who finds that the data directory lacks what this node has acknowledged.
pub const START_OVER: &str = "in a cluster of three or more, let this node leave (on another one: rushkvctl cluster \
                              leave NODE --yes), move its data_dir away and start it, since an older copy has \
                              forgotten what it acknowledged; of one or two, restore the whole data_dir, wal \
                              included, from a copy taken while the node was stopped";
