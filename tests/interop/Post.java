// Java's HttpClient: java Post.java URL... posts a body to each address, and prints the status and the answer of each.
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;

public class Post {
    public static void main(String[] arguments) throws Exception {
        for (String argument : arguments) {
            String[] named = argument.split("!"); // the version that the client offers, unless it is its default
            HttpClient.Builder builder = HttpClient.newBuilder();
            if (named.length > 1) builder.version(HttpClient.Version.valueOf(named[1]));
            HttpRequest request = HttpRequest.newBuilder(URI.create(named[0]))
                .header("Content-Type", "application/json")
                .POST(HttpRequest.BodyPublishers.ofString("{\"text\": \"you\"}"))
                .build();
            var response = builder.build().send(request, BodyHandlers.ofString());
            System.out.println(response.statusCode() + " " + response.body().replace("\n", " "));
        }
    }
}
