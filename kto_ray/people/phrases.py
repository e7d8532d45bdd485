"""The words of the simulated users: names, topics, ways to ask, and what an edit adds."""

NAMES = (
    "Maya", "Omar", "Lena", "Carlos", "Aisha", "Tom", "Nina", "David", "Sofia", "Kenji", "Priya", "Lucas", "Emma",
    "Noah", "Zara", "Felix", "Clara", "Hugo", "Ines", "Jonas", "Leila", "Marco", "Olivia", "Peter", "Rosa", "Sam",
    "Tara", "Victor", "Wendy", "Yusuf", "Anna", "Ben", "Diana", "Eric", "Grace", "Henry", "Julia", "Karim", "Laura",
    "Mark",
)  # fmt: skip
GREETINGS = ("Hi, I'm {}.", "Hello, my name is {}.", "Hi! I am {}.", "Hey, this is {}.", "My name is {}.")

SUBJECTS = (
    "honey", "rainbows", "the moon", "penguins", "green tea", "volcanoes", "jazz music", "bicycles", "chocolate",
    "the ocean", "bees", "snow", "libraries", "dolphins", "olive oil", "earthquakes", "the piano", "trains", "cheese",
    "butterflies", "thunder", "museums", "elephants", "soccer", "mushrooms", "deserts", "lighthouses", "owls", "yoga",
    "kites", "rivers", "bread", "stars", "horses", "maps", "gardens", "coral reefs", "clocks", "bridges", "spiders",
)  # fmt: skip
ACTIVITIES = (
    "sleep better", "save money", "cook rice", "learn to swim", "grow tomatoes", "make good coffee", "learn Spanish",
    "start running", "read more books", "keep my desk tidy", "bake bread", "train a puppy", "learn the guitar",
    "eat more vegetables", "wake up earlier", "make new friends", "plan a picnic", "take better photos",
    "write a thank-you note", "prepare for an exam", "drink more water", "fix a flat bike tire", "learn to draw",
    "keep houseplants alive", "spend less time on my phone", "choose a birthday gift", "pack for a short trip",
    "speak in front of people", "learn to dance", "stay warm in winter", "clean the kitchen", "make a salad",
    "plan a week of meals", "stretch after a run", "calm down before a test", "improve my handwriting",
    "learn to play chess", "care for a cat", "remember names", "write a short poem",
)  # fmt: skip

TEMPLATES = {
    "subject_question": (
        "Tell me something interesting about {}.",
        "Why do people like {}?",
        "What can you tell me about {}?",
        "What makes {} special?",
        "I want to learn about {}. What should I know first?",
        "How would you explain {} to a child?",
    ),
    "activity_question": (
        "How can I {}?",
        "What is a good way to {}?",
        "Do you have a tip to help me {}?",
        "I would like to {}. Where do I start?",
        "What should I know before I {}?",
        "Can you help me {}?",
    ),
    "subject_talk": (
        "I love {}.",
        "I have been thinking about {} lately.",
        "I am really curious about {}.",
        "Let's talk about {}.",
        "My friend told me about {} today.",
        "Today I read about {}.",
    ),
    "activity_talk": (
        "I am trying to {}.",
        "Tomorrow I want to {}.",
        "I wish I could {}.",
        "This week my goal is to {}.",
        "I finally decided to {}.",
    ),
    "one_sentence": (
        "In one sentence, what makes {} special?",
        "Tell me one fact about {} in a sentence.",
        "Describe {} in one sentence.",
        "Give me a one-line description of {}.",
    ),
}

WELCOMES = ("Hi {}!", "Hello {}!", "Hey {}!", "Good question, {}!", "Thanks for asking, {}!", "{}, I am happy to help.")
FOLLOW_UPS = (
    "What would you like to know more about?",
    "Does that help?",
    "What do you think?",
    "Would you like to hear more?",
    "What made you think of this today?",
    "Have you tried anything like it before?",
    "What would you like to do next?",
    "Is there something special you have in mind?",
    "How does that sound to you?",
    "What do you like most about it?",
    "Shall I tell you more?",
    "What is your own experience with it?",
)
