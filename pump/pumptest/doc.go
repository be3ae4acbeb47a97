// Package pumptest helps authors of sources and sinks: conformance suites that
// check what the engine relies on (TestSource, TestSink), an in-memory source
// and sink to pair one's own plugin with, and Chaos, which makes the calls of a
// source or sink fail before or after their effect, as a seed says.
//
// Adopting a suite takes a few lines:
//
//	func TestMySink(t *testing.T) {
//		pumptest.TestSink(t, pumptest.SinkSuite{
//			New:  func(t *testing.T) pump.Sink { return openMySink(t) },
//			Read: func(t *testing.T) map[string]pump.Item { return whatItHolds(t) },
//		})
//	}
package pumptest
