// Package cbb knows the backup folder: its layouts, the SQLite schema of its
// data files in the versions 2004, 2014 and 2015, the small JSON files beside
// them, and how a row becomes an item and back. sources/file/backup and
// sinks/file/backup are built on it; docs/backup.md is the description for people.
//
// SQLite itself is zombiezen.com/go/sqlite, which needs no C compiler.
package cbb
