// Connects with the Node.js SDK, prints one document and writes another.
const couchbase = require('couchbase')

async function main() {
  const [conn, bucket, key] = process.argv.slice(2)
  const cluster = await couchbase.connect(conn, {
    username: process.env.SDK_USER,
    password: process.env.SDK_PASSWORD,
  })
  const coll = cluster.bucket(bucket).defaultCollection()
  const got = await coll.get(key)
  console.log(JSON.stringify(got.content))
  await coll.upsert('from node', { hello: 'sim' })
  await cluster.close()
}

main().then(() => process.exit(0), (err) => {
  console.error(err)
  process.exit(1)
})
