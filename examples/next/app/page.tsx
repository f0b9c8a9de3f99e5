"use client"

import dynamic from "next/dynamic"

// The chat belongs to the browser: a server that rendered it would open a connection of its own.
const Chat = dynamic(() => import("./chat"), { ssr: false, loading: () => <p>Connecting…</p> })

export default function Page() {
  return <Chat />
}
